"""`metalearn bench`: times one meta-step of this package and the same step of other packages.

workloads   what is timed: numbers only
problem     a workload as tasks, a method and initial parameters
plain       the models in plain torch, and the reference: a loop of torch.autograd.grad in
float64
engine      the interface of engines, and why one may be skipped
native, by_learn2learn, by_higher, by_torchopt, by_jax, sampling     one engine per file
measure     time in turns, peak memory, quartiles
bench       workload by workload: check the gradients, then time; rows
scaling     seconds against tasks per batch, and memory in chunks
table, markdown, plot     the same rows as text, Markdown and a figure
command     the options of the command line"""

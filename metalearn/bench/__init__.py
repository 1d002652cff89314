"""`metalearn bench`: one meta-step of ours timed beside the same step of other people's packages.

workloads   what is timed: numbers only
problem     a workload made into tasks, a method and starting parameters
plain       the models once more in plain torch, and the reference: a loop of torch.autograd.grad in
float64
engine      what every engine offers, and why one may be left out
native, by_learn2learn, by_higher, by_torchopt, by_jax, sampling     one engine a file
measure     time in turns, peak memory, quartiles
bench       workload by workload: check the gradients, then time; rows
scaling     seconds against tasks per batch, and memory in chunks
table, markdown, plot     the same rows as text, Markdown and a figure
command     the options of the command line"""

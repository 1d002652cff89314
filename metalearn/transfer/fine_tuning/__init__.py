"""Fine-tuning of a new task with any rule, and with several step sizes in parallel."""

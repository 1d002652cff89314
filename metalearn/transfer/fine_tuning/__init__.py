"""Fine-tuning of a new task by any rule, and by several step sizes side by side."""

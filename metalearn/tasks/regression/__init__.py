"""Families of regression tasks on functions of one number, beside `tasks.sinusoid`."""

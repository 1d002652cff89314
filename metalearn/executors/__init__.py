"""Ways of running one pure step, and the choice of one."""

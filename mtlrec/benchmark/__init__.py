"""How fast a job trains, and what a step spends its time on."""

"""What lets an engine run where there is no GPU; loaded nowhere else."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests share rendered.py and slurm_cluster.py; they are not a package

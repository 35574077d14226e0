"""
Rebuilds the demo policy's weights, in about seven minutes on two cores:

    python examples/build_demo_policy.py --output_dir runs/demo_policy
"""

import argparse
import json
from pathlib import Path

from q_hawkeye_trl.demo.build import build_demo_policy


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuilds the demo policy's weights.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to write; must not exist or be empty.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of pictures, weights and order, in [0, 100).")
    arguments = parser.parse_args()
    provenance = build_demo_policy(arguments.output_dir, seed=arguments.seed)
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()

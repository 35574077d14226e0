"""
Rebuilds the bundled tiny policy: some minutes on two cores.

    python examples/build_demo_policy.py --output_dir runs/demo_policy

The bundled one was made by this command with the default seed; its `provenance.json` says with which versions.
"""

import argparse
import json

from q_hawkeye_trl.demo.policy import build_demo_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Empty or new folder for the policy.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights, pictures, order and raters.")
    args = parser.parse_args()
    print(json.dumps(build_demo_policy(args.output_dir, seed=args.seed), indent=2))


if __name__ == "__main__":
    main()

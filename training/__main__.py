"""`./vc train PART`, or `python -m training PART`: trains or evaluates one part of the bundled checkpoint."""

import sys
from importlib import import_module

from vc_core.errors import UserError

PARTS = {
    "autoencoder": "the autoencoder, on frames of synthetic scenes",
    "towers": "the text and image towers, on frames and captions",
    "network": "the network, on clips with all their conditions; writes the whole checkpoint",
    "evaluation": "measures how well a checkpoint obeys motion",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        print("usage: vc train PART [OPTIONS]   (vc train PART --help lists its options)\n", file=sys.stderr)
        for part, what in PARTS.items():
            print(f"  {part:12} {what}", file=sys.stderr)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    part = sys.argv.pop(1)
    sys.argv[0] = f"vc train {part}"
    try:
        import_module(f"training.{part}").main()
    except UserError as error:
        print(f"vc: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vc: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`./just demo`: the story of Weft, on real nodes where the machine can, else in the simulator."""

from __future__ import annotations

from dataplane.backend import Unavailable
from dataplane.xdp.backend import require_xdp


def main() -> None:
    """Tell it; ends the process with 1 if a step was not as told."""
    try:
        require_xdp()
    except Unavailable as error:
        from sim.story import main as tell

        tell(str(error))
    else:
        from sim.lab.demo import main as tell_for_real

        tell_for_real()


if __name__ == "__main__":
    main()

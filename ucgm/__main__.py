"""``python -m ucgm``, the form that ``torchrun`` and ``accelerate launch -m`` start."""

from ucgm.cli import main

main()

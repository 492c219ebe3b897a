"""The command line: commands, their options, and the texts of their help."""

from ucgm.cli.commands import main as main

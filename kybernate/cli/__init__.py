"""The command line: `kybernate` and, the same program, `kybernate-ctl`."""


def main() -> None:
    from kybernate.cli.program import program  # noqa: PLC0415 - a start-up cost, paid when run

    program()

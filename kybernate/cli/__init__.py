"""The command line: `kybernate` and, the same program, `kybernate-ctl`."""


def main() -> None:
    try:
        from kybernate.cli.program import program  # noqa: PLC0415 - a start-up cost, paid when run

        program()
    except KeyboardInterrupt:  # before there was a program that could say so
        raise SystemExit(130) from None

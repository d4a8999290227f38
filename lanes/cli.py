"""The command ``lanes``: a thin dispatcher that imports nothing heavy until it knows what is asked for."""

import sys

VERBS = {
    "fit": "train a network, e.g.  lanes fit -c configs/photographs.yaml",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "write a checkpoint's predictions to a CSV file",
    "plan": "show which layers stay in their lane and which cross, without training",
}


def _help() -> str:
    verbs = "\n".join(f"  {verb:10}{text}" for verb, text in VERBS.items())
    return (
        "usage: lanes VERB -c CONFIG [--KEY VALUE ...]\n\n"
        "Train convolutional networks in lanes: every channel group on its own device,\n"
        "meeting only at chosen layers.\n\n"
        f"verbs:\n{verbs}\n\n"
        "lanes VERB --help lists the keys of a configuration; each can be given on the command line as well.\n"
        "lanes --version prints the version. LANES_DEBUG=1 shows the stack trace of an error."
    )


def main(argv: list[str] | None = None) -> None:
    """Run one verb; exit code 0 when it went well, 2 for wrong input."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if argv[0] == "--version":
        from lanes import __version__  # noqa: PLC0415

        print(__version__)
        return
    if argv[0] not in VERBS:
        import difflib  # noqa: PLC0415

        match = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f"; did you mean {match[0]!r}?" if match else ""
        print(f"lanes: error: there is no verb {argv[0]!r}{hint} (lanes --help lists them)", file=sys.stderr)
        raise SystemExit(2)
    from lanes.training.commands import run  # noqa: PLC0415  (imports Lightning, which takes seconds)

    run(argv[0], argv[1:])

"""Settings 2 to 6 by number, one command line for all of them, and the runs of those that are asked for."""

import argparse

from harness.options import typed
from llm_tasks import (
    arguments,
    evaluation,
    experiment,
    setting2_option_count,
    setting3_context_length,
    setting4_k_shot,
    setting5_human_gap,
    setting6_factoid_vs_mcq,
)
from llm_tasks.evaluation import LevelSetting

SETTINGS: dict[int, LevelSetting] = {
    script.SETTING.name: script.SETTING
    for script in (
        setting2_option_count,
        setting3_context_length,
        setting4_k_shot,
        setting5_human_gap,
        setting6_factoid_vs_mcq,
    )
}


def run(argv: list[str] | None, own: int, description: str) -> int:
    """Compute the runs of the settings asked for, `own` if none is; every compressed model is made once for all."""
    parser = arguments.make_parser(description)
    evaluation.add_shared_options(parser)
    parser.add_argument_group("settings").add_argument(
        "--settings", type=int, nargs="+", choices=SETTINGS, default=[own], metavar="N",
        help=f"measure every compressed model in these, 2 to 6; --output_dir then needs {{setting}} (default {own})",
    )  # fmt: skip
    for setting in SETTINGS.values():
        setting.add_options(parser)
    args = parser.parse_args(argv)
    chosen = list(dict.fromkeys(args.settings))
    unobeyed = {name: unobeyed_options(setting, args) for name, setting in SETTINGS.items()}
    try:
        arguments.check_obeyed(args, typed(parser, argv), chosen, unobeyed)
    except ValueError as error:
        parser.error(str(error))
    return experiment.run(
        parser, args, [evaluation.as_setting(SETTINGS[name], others(SETTINGS[name]), unobeyed[name]) for name in chosen]
    )


def others(setting: LevelSetting) -> tuple[str, ...]:
    """Options that are other settings' alone."""
    known = {name for setting in SETTINGS.values() for name in setting.options} - set(evaluation.SHARED_OPTIONS)
    return tuple(sorted(known - set(setting.options)))


def unobeyed_options(setting: LevelSetting, args: argparse.Namespace) -> tuple[str, ...]:
    """Options of the settings that this one does not obey, as it reads options of questions."""
    return (*others(setting), *(() if "cloze" in setting.readers(args) else ("length_normalized",)))

"""Settings 2 to 6 by number, one command line for all of them, and the runs of those that are asked for."""

from llm_tasks import (
    arguments,
    experiment,
    levels,
    setting2_option_count,
    setting3_context_length,
    setting4_k_shot,
    setting5_human_gap,
    setting6_factoid_vs_mcq,
)
from llm_tasks.levels import LevelSetting

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
    levels.add_shared_options(parser)
    parser.add_argument_group("settings").add_argument(
        "--settings", type=int, nargs="+", choices=SETTINGS, default=[own], metavar="N",
        help=f"measure every compressed model in these, 2 to 6; --output_dir then needs {{setting}} (default {own})",
    )  # fmt: skip
    for setting in SETTINGS.values():
        setting.add_options(parser)
    args = parser.parse_args(argv)
    known = {name for setting in SETTINGS.values() for name in setting.options} - set(levels.SHARED_OPTIONS)
    chosen = [SETTINGS[name] for name in dict.fromkeys(args.settings)]
    return experiment.run(
        parser, args, [levels.as_setting(setting, tuple(sorted(known - set(setting.options)))) for setting in chosen]
    )

"""Settings 2 to 6 by number. Each file has one setting's options, data and levels; none imports another."""

from llm_tasks.levels import Setting
from llm_tasks.settings import context_length, factoid_vs_mcq, human_gap, k_shot, option_count

SETTINGS: dict[int | str, Setting] = {
    module.SETTING.name: module.SETTING for module in (option_count, context_length, k_shot, human_gap, factoid_vs_mcq)
}

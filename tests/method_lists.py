"""How messages list compressions: those of METHODS in its order, so that a new one anywhere breaks no test."""

from llm_tasks.methods import METHODS


def taking(strength: str) -> str:
    """The compressions that take this kind of strength."""
    return ", ".join(name for name, method in METHODS.items() if strength in method.strengths)


def obeying(option: str) -> str:
    """The compressions that obey this option of theirs."""
    return ", ".join(name for name, method in METHODS.items() if option in method.options)


def calibrated() -> str:
    """The compressions that read calibration text."""
    return ", ".join(name for name, method in METHODS.items() if method.statistic is not None)


def exported() -> str:
    """The compressions that make integers, which can be packed."""
    return ", ".join(name for name, method in METHODS.items() if method.quantize is not None)

import functools

from llm_tasks.same_code import same_code


def double(x: int) -> int:
    """Twice the number.

    Of any size.
    """
    return 2 * x


def twice(x: float) -> float:
    """The number and itself.

    As a product.
    """
    return 2 * x


def thrice(x: int) -> int:
    """Three times the number.

    Of any size.
    """
    return 3 * x


def doubled_other(y: int) -> int:
    """Twice the number.

    Of any size.
    """
    return 2 * y


def wrapped(x: int) -> int:
    """Twice the number,

    behind a decorator.
    """
    return 2 * x


wrapped = functools.wraps(wrapped)(functools.partial(wrapped))


def test_functions_are_told_by_their_instructions_not_their_words():
    assert same_code(double, twice)
    assert same_code(double, wrapped)
    assert not same_code(double, thrice)
    assert not same_code(double, doubled_other)


def test_what_is_no_function_is_like_nothing():
    assert not same_code(None, double)
    assert not same_code(len, len)
    assert not same_code(None, None)

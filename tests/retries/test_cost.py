"""However many dead letters are open: what one of them costs does not depend on the others."""

from tests.retries.cost import calls, explained, idle, many

FEW, MANY = 40, 400
#: Deciding about one takes hundreds; to see that nothing of it has changed, a few.
CALLS_A_LETTER = 15


async def test_a_turn_in_which_nothing_changed_decides_about_none_of_them() -> None:
    spent = {}
    for number in (FEW, MANY):
        async with many(number) as made:
            await idle(made, 3)
            spent[number] = await calls(idle(made, 1))
    assert (spent[MANY] - spent[FEW]) / (MANY - FEW) <= CALLS_A_LETTER, spent


async def test_one_is_explained_without_looking_at_the_others() -> None:
    spent = {}
    for number in (FEW, MANY):
        async with many(number) as made:
            await idle(made, 1)
            spent[number] = await calls(explained(made, "d7"))
    assert spent[MANY] <= 2 * spent[FEW], spent


async def test_approving_some_costs_as_much_as_they_are() -> None:
    spent = {}
    for number in (FEW, MANY):
        async with many(number) as made:
            await idle(made, 1)
            keys = made.control.awaiting("owner")
            assert len(keys) == number
            spent[number] = await calls(made.approve(keys)) / number
    assert spent[MANY] <= 2 * spent[FEW], spent

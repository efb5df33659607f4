"""However many dead letters are open: what one of them costs does not depend on the others."""

from tests.retries.cost import calls, explained, idle, many

FEW, MANY = 40, 400


async def test_a_turn_in_which_nothing_changed_does_not_go_through_all_of_them() -> None:
    spent = {}
    for number in (FEW, MANY):
        async with many(number) as made:
            await idle(made, 3)
            spent[number] = await calls(idle(made, 1))
    assert spent[MANY] <= 2 * spent[FEW], spent


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
            spent[number] = await calls(made.control.approve(keys, who="ann")) / number
    assert spent[MANY] <= 2 * spent[FEW], spent

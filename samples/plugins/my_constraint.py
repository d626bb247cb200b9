"""A kind of constraint: a price in euros. Try: --constrain 0=price:99, or <mask constraint="price:99"> in a page."""

from cm3kit.decoders.grammar.rules import ConstraintKind, Texts, constraint


@constraint("price")
class Price(ConstraintKind):
    """From 0.00 € to as many euros as the value says; `Regex` and `ByteDfa` are the other rules there are."""

    def rule(self, value: str) -> Texts:
        """Every price, cent by cent."""
        most = 100 * int(value or 9)
        return Texts(f"{cents // 100}.{cents % 100:02} €" for cents in range(most + 1))

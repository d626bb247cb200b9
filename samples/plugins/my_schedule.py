"""An unmasking schedule: how many positions each pass writes. Try: --decoder diffusion --schedule halves."""

from cm3kit.decoders.diffusion.axes import schedule


@schedule("halves")
def halves(blanks: int, steps: int) -> list[int]:
    """Half of what is left at each pass, and the rest at the last one; the counts sum to `blanks`."""
    counts = []
    for _ in range(min(steps, blanks) - 1):
        counts.append(max(1, (blanks - sum(counts)) // 2))
        if sum(counts) == blanks:
            return counts
    return [*counts, blanks - sum(counts)]

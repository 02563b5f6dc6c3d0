"""Sizes as people read them."""


def in_words(size: int) -> str:
    gib = 1024**3
    return f"{size / gib:.1f} GiB" if size >= gib else f"{size / 1024**2:.0f} MiB"

"""What crosses a wire or is kept on disk: names, messages, records. No behaviour, no I/O."""

"""A zoo of workloads whose state is hard to bring back."""

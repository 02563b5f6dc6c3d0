"""Which examples Hypothesis tries: the same ones in every run, however slow the machine is, so that
a run that fails tells of what was changed. To look for new ones:
`make test-host ARGS="tests/unit --hypothesis-profile searching"`.
"""

from hypothesis import HealthCheck, settings

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("steady", PATIENT, derandomize=True)
settings.register_profile("searching", PATIENT, max_examples=1000, print_blob=True)
settings.load_profile("steady")

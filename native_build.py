"""Optional native build."""


def native_build_arguments() -> dict:
    return {}

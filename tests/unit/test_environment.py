"""What a result records of its program's environment."""

from jaxway_shared.environment import recorded


def test_what_changes_a_result_is_recorded_and_no_password() -> None:
    environment = {
        "XLA_FLAGS": "--x",
        "OMP_NUM_THREADS": "1",
        "MODULEPATH": "5",
        "HOME": "/h",
        "HF_TOKEN": "t",
        "https_proxy": "http://user:pass@word@proxy:80",
        "APPTAINER_DOCKER_PASSWORD": "p",
        "JAX_PLATFORMS": "",
    }
    assert recorded(environment) == {
        "APPTAINER_DOCKER_PASSWORD": "...",
        "JAX_PLATFORMS": "",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--x",
        "https_proxy": "http://proxy:80",
    }

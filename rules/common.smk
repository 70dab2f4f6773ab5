"""What the rules share: the checked configuration, and what starts each step (jaxway/launch.py)."""

import os
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

HERE = workflow.current_basedir  # not that of a workflow that has this one as a module
if not isinstance(HERE, os.PathLike):
    code = "JW026"  # what prints codes comes with the checkout
    sentence = f"jaxway must be checked out, since it runs programs: name its Snakefile, not {HERE}"
    with_its_code = f"{sentence} [{code}]"
    sys.exit(with_its_code)
ROOT = Path(HERE).resolve().parent  # a link leads nowhere in a container
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "workflow/scripts")]
from jaxway.config.load import load, refuse_repeated_keys
from jaxway.config.site import load_site
from jaxway.container.verify import exists, recorded_image
from jaxway.job_functions import JobFunctions, no_container
from jaxway.launch import Launch, command_line, prepare_environment
from jaxway.run import Run, check_at_exit_of_dry_run
from jaxway_shared.errors import UserError

try:
    SITE = load_site(ROOT)
    for file in workflow.configfiles:
        refuse_repeated_keys(Path(file))
    CONFIG = load(config, SITE)
    STARTS_CONTAINERS = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
    CONTAINED = SITE.container or STARTS_CONTAINERS
    LAUNCH = Launch(ROOT, CONFIG, SITE, CONTAINED, workflow.deployment_settings.apptainer_args)
    PULLED, CONTAINER = LAUNCH.pulled, LAUNCH.container
    exists(Path(SITE.sif))  # another user's folder may be closed
except UserError as error:
    sys.exit(error.line())
prepare_environment(ROOT, CONTAINED)

JAXWAY = [sys.executable, str(ROOT / "workflow/jaxway")]  # of this checkout, installed or not
JOBS = JobFunctions(LAUNCH)
IN_CONTAINER = {"container": CONTAINER.digest} if CONTAINED else {}  # input of what runs in it


def jaxway(wildcards, output):
    """The command. Because of `output`, a change of it (another Python) makes no result stale."""
    return command_line(JAXWAY)


def outputs(container):
    """Its digest and, while it is gone, a mark: no output may be a link that leads nowhere."""
    gone = not os.path.exists(container.output)
    mark = {"made": temp(touch(f"{container.output}.made"))} if gone else {}
    known = os.path.exists(container.digest)
    return {"digest": update(container.digest) if known else container.digest, **mark}


def jax_sif(wildcards):
    """A computing step's container. Its command line starts it, so Snakemake itself must not."""
    return CONTAINER.sif if CONTAINED and not STARTS_CONTAINERS else None

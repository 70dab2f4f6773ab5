"""The Slurm account: whether this user may charge it, and what is left of its budget."""

import getpass
import re

from jaxway.config.site import Site
from jaxway.preflight import jutil
from jaxway.preflight.finding import Finding, Findings, failure, passed, warning
from jaxway.slurm.commands import error_message, run_query


def check_account(name: str, node_hours: float, site: Site) -> Findings:
    """``node_hours``: the most that the plan can take."""
    user = f"user={getpass.getuser()}"
    query = ("show", "associations", user, "format=account")
    result = run_query("sacctmgr", "--noheader", "--parsable2", *query)
    accounts = sorted({*result.stdout.split()})
    reported = bool(accounts) and not result.returncode
    if not reported:
        yield warning(f"{name}: Slurm did not report it ({error_message(result)})")
    elif name.lower() not in accounts:  # Slurm keeps them in lower case
        yield refusal(name, accounts)
        return
    else:
        yield compare_budget(name, node_hours * (site.cores_per_node or 1), site.budget_command)
    if site.jutil:
        yield from check_budgets(name, decides=not reported)


def refusal(name: str, accounts: list[str]) -> Finding:
    names = ", ".join(accounts) or "those you have (none is known)"
    advice = f"set `account` or $SBATCH_ACCOUNT to one of {names}"
    return failure("JW501", f"you may not charge account {name!r}: {advice}")


def check_budgets(name: str, decides: bool) -> Findings:
    """What JSC's accounting says. ``decides``: Slurm says nothing."""
    try:
        budgets = sorted({each for project in jutil.projects() for each in project.budgets})
        if name.lower() not in map(str.lower, budgets):
            names = ", ".join(budgets) or "none"
            message = f"`jutil user projects` names {names}, not {name}, which Slurm accepts"
            yield refusal(name, budgets) if decides else warning(message)
            return
        quota = jutil.cpu_quota(name)
    except jutil.UnrecognizedError as error:
        yield warning(str(error))
    else:
        yield passed(
            f"{name} by `jutil user cpuquota`: {quota} (jobs that are queued before new quota "
            "arrives keep their low priority: submit them again)"
        )


def compare_budget(name: str, core_hours: float, budget_command: str | None) -> Finding:
    """What is left of the account, against what the plan can take."""
    left = remaining_budget(name)
    if left is None:
        instead = f" (`{budget_command}` does)" if budget_command else ""
        return passed(f"{name}; Slurm does not report what is left of its budget{instead}")
    message = f"{name} has {left:,.0f} CPU-h left"
    if left <= 0:
        return failure("JW502", f"{message}: its jobs would wait; use another one or ask for more")
    if left < core_hours:
        return warning(f"{message}, less than this may take")
    return passed(message)


def remaining_budget(name: str) -> float | None:
    """CPU-hours left of an account's limit (GrpTRESMins); None: no limit, or not reported."""
    fields = "--format=User,GrpTRESMins,GrpTRESRaw"
    result = run_query("sshare", "--noheader", "--parsable2", f"--accounts={name}", fields)
    for line in result.stdout.splitlines():
        user, limit, used = (*line.split("|"), "", "")[:3]
        limit_minutes, used_minutes = (re.search(r"\bcpu=(\d+)", text) for text in (limit, used))
        if not user and limit_minutes:  # the account's own, of all its users
            return (int(limit_minutes[1]) - (int(used_minutes[1]) if used_minutes else 0)) / 60
    return None

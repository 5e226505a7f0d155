# Recipes of the project. `./just NAME` sets the machine up first; `just NAME` takes it as it is.

set positional-arguments := true

bin := justfile_directory() / ".venv/bin"

# Recipes start Python many times, whole nodes among it: what was compiled once is kept, whatever
# the environment says, and not beside the sources. A node starts in a third of the time with it.
export PYTHONDONTWRITEBYTECODE := ""
export PYTHONPYCACHEPREFIX := justfile_directory() / ".cache/bytecode"

# So are the XDP programs of nodes that run here.
export CACHE_DIRECTORY := justfile_directory() / ".cache/programs"

# List the recipes.
default:
    @{{ just_executable() }} --list --justfile {{ justfile() }}

# Three sites on this machine, through a partition and a heal, told line by line.
demo:
    @{{ bin }}/python -m sim.demo

# Lint, types and import rules, then all tests, and once more what failed if little did; arguments go to pytest.
test *ARGS: check
    {{ bin }}/python -m tests.suite "$@"

# Measure a part (core, dataplane, node, recovery, sim), or some sections of it: a table, and build/bench/PART.json.
bench PART *SECTIONS:
    @{{ bin }}/python -m tests.compiled -m tests.bench "$@"

# Lint, types and import rules.
check:
    {{ bin }}/ruff check .
    {{ bin }}/ruff format --check .
    {{ bin }}/mypy
    {{ bin }}/lint-imports --no-cache

# Format, and mend what lint can mend by itself.
fmt:
    {{ bin }}/ruff check --fix .
    {{ bin }}/ruff format .

# Inputs for every decoder, for so many seconds; `keep`: into the corpus, if they reach more of it.
fuzz SECONDS="60" *KEEP:
    @{{ bin }}/python -m tests.fuzz.run "$@"

# The XDP programs, built by clang ahead of time: a gateway with WEFT_PROGRAMS=FILE needs no compiler.
programs FILE="build/weft.o":
    @mkdir -p "$(dirname "$1")"
    {{ bin }}/python -m dataplane.xdp.ahead "$1"

# Random frames for the programs in the kernel, each beside what a reference in Python says.
frames COUNT="1000000" SEED="1":
    @{{ bin }}/python -m tests.dataplane.frames "$1" "$2"

# `sim [SEEDS]`: schedules until stopped. `node SECONDS`: real nodes under churn. `kills|stores COUNT`: kill -9.
soak PART *ARGS:
    @{{ bin }}/python -m tests.compiled -m tests.soak "$@"

# Python with the pure modules compiled (mypyc, gcc; `bench` and `soak` do it by themselves): `compiled -m mesh.cli …`.
compiled *ARGS:
    @{{ bin }}/python -m tests.compiled "$@"

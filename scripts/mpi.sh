#!/bin/sh
# Tests ranks that are processes, with every MPI that is installed here, Open MPI and MPICH; says so where there is none.
# `--quick`: `danlu` itself with the first of them only, for which it is built anew; the engine with each.
# On Debian and Ubuntu: apt-get install libclang-dev, and libopenmpi-dev openmpi-bin or libmpich-dev mpich or all of them.
set -eu
quick=${1:-}
cd "$(dirname "$0")/.."

clang=$(ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so* 2>/dev/null || true)
if [ -z "$clang${LIBCLANG_PATH:-}" ]; then
    echo "skipped: there is no libclang (apt-get install libclang-dev)"
    exit 0
fi
found=""
for compiler in mpicc.openmpi mpicc.mpich; do
    ! command -v "$compiler" >/dev/null 2>&1 || found="$found $compiler"
done
[ -n "$found" ] || ! command -v mpicc >/dev/null 2>&1 || found=mpicc
[ -n "$found" ] || echo "skipped: there is no MPI (apt-get install libopenmpi-dev openmpi-bin)"
# Inside a container one is often root, which Open MPI wants to be told.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
tests="--lib --test cli"
# What these builds put under target/release, unoptimised and of one MPI, nobody is to run by chance: what was there comes back.
put_back() {
    for program in danlu demo; do
        rm -f "target/release/$program"
        [ ! -e "target/mpi-kept/$program" ] || mv "target/mpi-kept/$program" target/release/
    done
}
mkdir -p target/release target/mpi-kept
# Kept already: a run of this was killed before it put them back, and what lies there now is of an MPI.
for program in danlu demo; do
    [ -e "target/mpi-kept/$program" ] || [ ! -e "target/release/$program" ] || mv "target/release/$program" target/mpi-kept/
done
trap put_back EXIT
trap 'exit 130' INT TERM
for compiler in $found; do
    # What danlu launch starts must be of the same MPI.
    runner=$(command -v "mpirun.${compiler#mpicc.}" || command -v mpirun)
    mkdir -p target/mpi-bin && rm -f target/mpi-bin/mpirun
    # No link: MPICH's looks for its other programs where it was started.
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$runner" > target/mpi-bin/mpirun && chmod +x target/mpi-bin/mpirun
    export PATH="$PWD/target/mpi-bin:$PATH"
    echo "with $compiler"
    # Its build script does not notice that another MPI is meant.
    cargo clean --release --locked --quiet -p mpi-sys
    # Our own code is built once more for each MPI, and computes little here: what its optimiser takes is saved.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 MPICC="$compiler" \
        cargo test --release --locked --features mpi $tests -- comm::mpi processes
    [ "$quick" != --quick ] || tests=--lib
done

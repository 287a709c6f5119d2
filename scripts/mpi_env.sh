# shellcheck shell=sh
# What Open MPI 4 and 5 need in places they were not made for. Source it, then use "$MPIRUN":
#
#   . scripts/mpi_env.sh
#   $MPIRUN -np 2 build/release/bin/gradus train configs/kjv_char_cpu.yaml parallel.tp=2
#
# On a cluster's own installation none of this is wanted. Each release takes its own names (OMPI_MCA_… of mpirun
# is PRTE_MCA_… since 5) and passes over the other's. The tests take every line that begins with "export"
# (tests/parallel/CMakeLists.txt).

# In a container one is often root, which mpirun refuses unless asked twice.
export OMPI_ALLOW_RUN_AS_ROOT=1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# More ranks than cores (tests, trying a layout out on a laptop) instead of "not enough slots".
export OMPI_MCA_rmaps_base_oversubscribe=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe

# Shared-memory messages without cross-memory attach: containers often forbid process_vm_readv
# between processes, and every message then prints an error.
export OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_smsc=^cma

# Gradus divides the cores among the ranks itself (docs/parallelism.md), so mpirun's default of
# binding two ranks to one core each would only take the others away.
export OMPI_MCA_hwloc_base_binding_policy=none
export PRTE_MCA_hwloc_default_binding_policy=none

# One machine: loopback and shared memory suffice. Ranks on several machines need this unset. Open MPI 5
# knows its shared memory by the old name too.
export OMPI_MCA_btl=self,vader

MPIRUN="${MPIRUN:-mpirun}"

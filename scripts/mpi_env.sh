# What Open MPI 4 needs in places it was not made for. Source it, then use "$MPIRUN":
#
#   . scripts/mpi_env.sh
#   $MPIRUN -np 2 build/release/bin/gradus train configs/kjv_char_cpu.yaml parallel.tp=2
#
# On a cluster's own installation none of this is wanted.

# In a container one is often root, which mpirun refuses unless asked twice.
export OMPI_ALLOW_RUN_AS_ROOT=1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# More ranks than cores (tests, trying a layout out on a laptop) instead of "not enough slots".
export OMPI_MCA_rmaps_base_oversubscribe=1

# Shared-memory messages without cross-memory attach: containers often forbid process_vm_readv
# between processes, and every message then prints an error.
export OMPI_MCA_btl_vader_single_copy_mechanism=none

# Gradus divides the cores among the ranks itself (docs/parallelism.md), so mpirun's default of
# binding two ranks to one core each would only take the others away.
export OMPI_MCA_hwloc_base_binding_policy=none

# One machine: loopback and shared memory suffice. Ranks on several machines need this unset.
export OMPI_MCA_btl=self,vader

MPIRUN="${MPIRUN:-mpirun}"

//! Whether something started this process as one of several, and what it says of it.

/// Who started several processes, by what they can talk through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `mpirun`, `mpiexec` or `srun`.
    Mpi,
    /// `torchrun`, or a script that sets what it sets: each process has a GPU, and NCCL.
    Torchrun,
}

impl Launcher {
    /// Whether this build can talk to the others.
    pub fn is_served(self) -> bool {
        match self {
            Self::Mpi => cfg!(feature = "mpi"),
            Self::Torchrun => cfg!(feature = "nccl"),
        }
    }
}

/// What a launcher says of this process before it has spoken to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launched {
    /// Who says it.
    pub by: Launcher,
    /// Its number.
    pub rank: usize,
    /// How many there are; None where the launcher does not say.
    pub size: Option<usize>,
    /// Its number among those of its machine, if the launcher says so.
    pub local_rank: usize,
}

impl Launched {
    /// Of this process; None where nothing started it as one of several.
    pub fn here() -> Option<Self> {
        let found = Self::of(|name| std::env::var(name).ok());
        found.iter().find(|one| one.by.is_served()).or(found.first()).copied()
    }

    /// By the variables of Open MPI, of MPICH's and Intel's Hydra, of PMIx, as `srun` has it, and of
    /// torchrun.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let number = |name: &str| variable(name)?.trim().parse().ok();
        let one = |(by, rank, size, local): (Launcher, &str, &str, &str)| {
            let local_rank = number(local).unwrap_or(0);
            Some(Self { by, rank: number(rank)?, size: number(size), local_rank })
        };
        let of_mpi = [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
            ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
            ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        ]
        .map(|(rank, size, local)| (Launcher::Mpi, rank, size, local));
        let mut found: Vec<Self> = of_mpi.into_iter().find_map(one).into_iter().collect();
        // RANK alone is anybody's word.
        if variable("MASTER_ADDR").is_some() && variable("MASTER_PORT").is_some() {
            let said = one((Launcher::Torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK"));
            found.extend(said.filter(|said| said.size.is_some()));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let of = |set: &[(&str, &str)]| {
            Launched::of(|name| {
                set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string())
            })
        };
        let one = |by, rank, size, local_rank| vec![Launched { by, rank, size, local_rank }];
        assert_eq!(of(&[]), []);
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(of(&open_mpi), one(Launcher::Mpi, 3, Some(4), 0));
        let hydra = of(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]);
        assert_eq!(hydra, one(Launcher::Mpi, 0, Some(2), 0));
        let srun = [("PMIX_RANK", "1"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1")];
        assert_eq!(of(&srun), one(Launcher::Mpi, 1, Some(8), 1));
        let meeting = [("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")];
        let torchrun = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")];
        let torchrun = [&torchrun[..], &meeting].concat();
        assert_eq!(of(&torchrun), one(Launcher::Torchrun, 5, Some(8), 1));
        assert_eq!(of(&[&open_mpi[..], &torchrun].concat()).len(), 2);
        assert_eq!(of(&torchrun[..3]), [], "RANK is anybody's word");
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "8")]), [], "a script in a job");
    }
}

//! The whole program in the simulation: `replicate` with its tasks, stores that behave badly, restores.

mod book;
mod bucket;
mod checks;
mod daemon;
mod deaths;
mod follower;
mod gate;
mod manners;
mod neighbour;
mod rival;
mod settle;
mod sim;
mod site;
mod sqlite;
mod steps;
mod swarm;

pub(crate) use gate::gate;
pub(crate) use steps::perhaps_leave;

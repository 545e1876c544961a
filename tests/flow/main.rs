//! Each verdict and each execution, as the user sees them and as the record tells them.

mod approvals;
mod approvals_screen;
mod asking;
mod bad_input;
mod bytes;
mod environment;
mod executions;
mod failures;
mod layers;
mod lifecycle;
mod machines;
mod peers;
mod permissions;
mod project_skills;
mod records;
mod review;
mod rules;
mod scripts;
mod skills;

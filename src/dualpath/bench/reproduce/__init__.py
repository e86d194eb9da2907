"""The paper's evaluation again, in simulation: every number of its section 6 beside ours."""

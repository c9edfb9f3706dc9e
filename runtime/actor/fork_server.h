// The process that others are forked from: troupe-actor with its libraries loaded and bound, and
// nothing started. To start a program and bind its libraries costs ten times what a fork does.
#pragma once

namespace troupe::actor {

// Returns at once if the command line is not a fork server's (see protocol/fork_server.h).
// Otherwise serves descriptor 3, and returns in each process that was forked: as a child of the
// worker, with what a started one has (descriptor 3, its log, its environment, its folder, its
// group, its id in the command line). The process is single-threaded until then, so that a fork
// copies all of it. Ends with the worker.
void serve_forks(int argc, char** argv);

}  // namespace troupe::actor

// A package's way from one process to another: a stream of PackageChunk, each sent once the
// receiver has room for it.
#pragma once

#include <memory>

#include "packages/file.h"
#include "packages/folder.h"
#include "protocol/messages.h"
#include "transport/environment.h"
#include "transport/peer.h"

namespace troupe::packages {

// Sends all of it from this offset on. Errors: data_loss (the file changed), those of the stream.
Async<Status> send(transport::Environment environment, PackageFilePointer package,
                   uint64_t offset_bytes, transport::OutgoingStream& out);

struct FetchOptions {
  protocol::GetPackage request;
  Duration silence_max{};  // Between two chunks.
  // What is written to; outlives the call.
  const Folder* folder = nullptr;
  Keep keep = Keep::cached;
  uint64_t bytes_max = package_bytes_max;
};
// Asks the peer for the package and puts it into the folder, verified. Errors: data_loss (other
// bytes came, or too many), exhausted (the disk is full), internal (what else is wrong with the
// folder), deadline_exceeded (silence), and what the peer said.
Async<Result<PackageFilePointer>> fetch(transport::Environment environment,
                                        std::shared_ptr<transport::Peer> peer,
                                        FetchOptions options);

}  // namespace troupe::packages

#include "packages/transfer.h"

#include <fmt/format.h>

#include "protocol/codec.h"

namespace troupe::packages {

namespace {
constexpr uint32_t chunks_unread_max = 4;
}

Async<Status> send(transport::Environment environment, PackageFilePointer package,
                   uint64_t offset_bytes, transport::OutgoingStream& out) {
  if (offset_bytes > package->size_bytes) {
    co_return error(Code::invalid, "the package is shorter than that");
  }
  for (uint64_t at = offset_bytes; at < package->size_bytes;) {
    auto read = [package, at] { return read_chunk(*package, at); };
    TROUPE_CO_TRY(auto data, co_await transport::run_blocking(environment, std::move(read)));
    protocol::PackageChunk chunk;
    chunk.offset_bytes = at;
    chunk.total_bytes = package->size_bytes;
    at += data.size();
    chunk.data = std::move(data);
    Bytes item = protocol::encode(chunk);
    TROUPE_CO_CHECK(co_await out.send(std::move(item)));
  }
  co_return ok();
}

namespace {

// One that comes, shared with the threads that write it: a fetch may be unwound while they do.
using IncomingPointer = std::shared_ptr<Folder::Incoming>;

// That this process's disk does not let it says nothing of what the peer has.
Error own(Error failure) {
  const Code code = failure.code();
  if (code != Code::not_found && code != Code::denied) return failure;
  return error(Code::internal, failure.message());
}

Async<Result<IncomingPointer>> begin(transport::Environment environment, const Folder* folder,
                                     std::string hash, Keep keep) {
  auto make = [folder, hash, keep] { return folder->receive(hash, keep); };
  auto made = co_await transport::run_blocking(environment, std::move(make));
  if (!made) co_return own(std::move(made).error());
  co_return IncomingPointer{std::move(*made)};
}

Async<Result<std::optional<protocol::PackageChunk>>> next_chunk(
    std::shared_ptr<transport::IncomingStream> stream) {
  auto item = co_await stream->next();
  if (!item) co_return std::move(item).error();
  if (!*item) co_return std::optional<protocol::PackageChunk>{};
  TROUPE_CO_TRY(auto chunk, protocol::decode<protocol::PackageChunk>(**item));
  co_return std::optional<protocol::PackageChunk>{std::move(chunk)};
}

}  // namespace

Async<Result<PackageFilePointer>> fetch(transport::Environment environment,
                                        std::shared_ptr<transport::Peer> peer,
                                        FetchOptions options) {
  TROUPE_CO_TRY(const auto incoming,
                co_await begin(environment, options.folder, options.request.hash, options.keep));
  transport::Message message{protocol::encode(options.request), {}};
  auto opened =
      peer->open_stream(transport::Method::get_package, std::move(message), {}, chunks_unread_max);
  if (!opened) co_return std::move(opened).error();
  const std::shared_ptr<transport::IncomingStream> stream = *opened;
  for (;;) {
    const Instant deadline = environment.clock.now() + options.silence_max;
    auto next = co_await with_deadline(environment.clock, deadline, next_chunk(stream));
    if (!next) co_return std::move(next).error();
    if (!*next) break;
    const auto chunk = std::make_shared<const protocol::PackageChunk>(std::move(**next));
    if (chunk->offset_bytes != incoming->size_bytes() || chunk->total_bytes > options.bytes_max ||
        chunk->offset_bytes > chunk->total_bytes ||
        chunk->data.size() > chunk->total_bytes - chunk->offset_bytes) {
      co_return error(Code::data_loss, "the chunks of a package do not follow each other");
    }
    auto write = [incoming, chunk] { return incoming->append(chunk->data); };
    TROUPE_CO_CHECK(co_await transport::run_blocking(environment, std::move(write)));
  }
  auto finish = [incoming] { return incoming->finish(); };
  auto finished = co_await transport::run_blocking(environment, std::move(finish));
  if (!finished) co_return own(std::move(finished).error());
  co_return finished;
}

}  // namespace troupe::packages

// An NCCL on the host, for processes that are threads of one. It keeps what NCCL promises and no more: operations wait on
// their stream until that is asked for, a group is one operation, and what goes from one process to another keeps its order.
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

// What lies between the processes of a communicator.
struct Hub {
    explicit Hub(int size) : size(size), posts(static_cast<size_t>(size) * size) {}
    std::deque<std::vector<char>>& post(int from, int to) { return posts[static_cast<size_t>(from) * size + to]; }
    int size;
    int arrived = 0;
    std::vector<std::deque<std::vector<char>>> posts;
};

struct Comm {
    std::shared_ptr<Hub> hub;
    int rank;
};

enum class Kind { Send, Receive };

struct Op {
    Kind kind;
    Comm* comm;
    int peer;
    const char* from;
    char* to;
    size_t bytes;
};

using Group = std::vector<Op>;

struct Stream {
    std::deque<Group> groups;
};

std::mutex lock;
std::condition_variable changed;
std::map<std::string, std::shared_ptr<Hub>> hubs;
uint64_t ids = 0;
thread_local int depth = 0;
thread_local std::map<Stream*, Group> open_groups;
thread_local std::string last;

size_t width(int type) { return type == 7 ? 4 : 1; }

void add(Stream* stream, const Op& op) {
    if (depth > 0) {
        open_groups[stream].push_back(op);
    } else {
        stream->groups.push_back({op});
    }
}

// All that a group sends is on its way before anything is waited for.
int run(const Group& group) {
    std::unique_lock<std::mutex> held(lock);
    for (const Op& op : group) {
        if (op.kind == Kind::Send) {
            op.comm->hub->post(op.comm->rank, op.peer).emplace_back(op.from, op.from + op.bytes);
        }
    }
    changed.notify_all();
    for (const Op& op : group) {
        if (op.kind != Kind::Receive) continue;
        auto& post = op.comm->hub->post(op.peer, op.comm->rank);
        changed.wait(held, [&] { return !post.empty(); });
        if (post.front().size() != op.bytes) {
            fprintf(stderr, "process %d expects %zu bytes of %d, which sent %zu\n", op.comm->rank, op.bytes, op.peer,
                    post.front().size());
            return 5;
        }
        memcpy(op.to, post.front().data(), op.bytes);
        post.pop_front();
    }
    return 0;
}

}  // namespace

extern "C" {

struct UniqueId {
    char internal[128];
};

int ncclGetVersion(int* version) {
    *version = 23107;
    return 0;
}

int ncclGetUniqueId(UniqueId* id) {
    std::lock_guard<std::mutex> held(lock);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "id %llu", static_cast<unsigned long long>(++ids));
    return 0;
}

int ncclCommInitRank(void** comm, int size, UniqueId id, int rank) {
    if (rank < 0 || rank >= size) {
        last = "rank " + std::to_string(rank) + " of " + std::to_string(size);
        return 4;
    }
    std::unique_lock<std::mutex> held(lock);
    auto& hub = hubs[std::string(id.internal, sizeof id.internal)];
    if (!hub) hub = std::make_shared<Hub>(size);
    auto mine = hub;
    ++mine->arrived;
    changed.notify_all();
    changed.wait(held, [&] { return mine->arrived == size; });
    *comm = new Comm{mine, rank};
    return 0;
}

int ncclCommDestroy(void* comm) {
    delete static_cast<Comm*>(comm);
    return 0;
}

int ncclCommAbort(void* comm) { return ncclCommDestroy(comm); }

int ncclCommGetAsyncError(void*, int* error) {
    *error = 0;
    return 0;
}

const char* ncclGetErrorString(int code) { return code == 4 ? "invalid argument" : "invalid usage"; }

const char* ncclGetLastError(void*) { return last.c_str(); }

int ncclGroupStart() {
    ++depth;
    return 0;
}

int ncclGroupEnd() {
    if (--depth == 0) {
        for (auto& [stream, group] : open_groups) stream->groups.push_back(std::move(group));
        open_groups.clear();
    }
    return 0;
}

int ncclSend(const void* from, size_t n, int type, int peer, void* comm, void* stream) {
    add(static_cast<Stream*>(stream),
        {Kind::Send, static_cast<Comm*>(comm), peer, static_cast<const char*>(from), nullptr, n * width(type)});
    return 0;
}

int ncclRecv(void* to, size_t n, int type, int peer, void* comm, void* stream) {
    add(static_cast<Stream*>(stream),
        {Kind::Receive, static_cast<Comm*>(comm), peer, nullptr, static_cast<char*>(to), n * width(type)});
    return 0;
}

int ncclBroadcast(const void* from, void* to, size_t n, int type, int root, void* comm, void* stream) {
    Comm* here = static_cast<Comm*>(comm);
    ncclGroupStart();
    if (here->rank == root) {
        for (int peer = 0; peer < here->hub->size; ++peer) ncclSend(from, n, type, peer, comm, stream);
    }
    ncclRecv(to, n, type, root, comm, stream);
    return ncclGroupEnd();
}

int ncclAllGather(const void* from, void* to, size_t n, int type, void* comm, void* stream) {
    ncclGroupStart();
    for (int peer = 0; peer < static_cast<Comm*>(comm)->hub->size; ++peer) {
        ncclSend(from, n, type, peer, comm, stream);
        ncclRecv(static_cast<char*>(to) + peer * n * width(type), n, type, peer, comm, stream);
    }
    return ncclGroupEnd();
}

// What CUDA has for streams.
void* eslm_stream_new() { return new Stream; }

void eslm_stream_free(void* stream) { delete static_cast<Stream*>(stream); }

int eslm_stream_run(void* of) {
    Stream* stream = static_cast<Stream*>(of);
    while (!stream->groups.empty()) {
        const Group group = std::move(stream->groups.front());
        stream->groups.pop_front();
        if (const int failed = run(group)) return failed;
    }
    return 0;
}
}

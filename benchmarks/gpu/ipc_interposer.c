/* Remembers what CUDA IPC maps (LD_PRELOAD) and closes a dead peer's mappings on request, behind UCX's back.
 *
 * UCX keeps its entries: an address that we closed stays reserved, so that nothing else is ever mapped there, and
 * UCX's own late close of it is swallowed. cc -shared -fPIC -O1 -o ipc_interposer.so ipc_interposer.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

typedef unsigned long long Address;
typedef struct { char bytes[64]; } Handle;
enum { FREE, OPEN, CLOSED_BY_US, MAPPINGS_MAX = 1 << 16 };
static struct { Address address; Handle handle; int state; } mappings[MAPPINGS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int opened;

static void *real(const char *name)
{
    static void *cuda;
    if (!cuda)
        cuda = dlopen("libcuda.so.1", RTLD_LAZY);
    return dlsym(cuda, name);
}

int cuIpcOpenMemHandle_v2(Address *address, Handle handle, unsigned flags)
{
    int (*call)(Address *, Handle, unsigned) = real("cuIpcOpenMemHandle_v2");
    int i, result = call(address, handle, flags);
    pthread_mutex_lock(&lock);
    for (i = 0; !result && i < MAPPINGS_MAX; i++)
        if (mappings[i].state == FREE) {
            mappings[i].address = *address;
            mappings[i].handle = handle;
            mappings[i].state = OPEN;
            opened++;
            break;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

int cuIpcCloseMemHandle(Address address)
{
    int (*call)(Address) = real("cuIpcCloseMemHandle");
    int i, is_closed = 0;
    pthread_mutex_lock(&lock);
    for (i = 0; i < MAPPINGS_MAX; i++)
        if (mappings[i].state != FREE && mappings[i].address == address) {
            is_closed = mappings[i].state == CLOSED_BY_US;
            mappings[i].state = is_closed ? CLOSED_BY_US : FREE;
            break;
        }
    pthread_mutex_unlock(&lock);
    return is_closed ? 0 : call(address);
}

int disagg_ipc_opened(void) { return opened; }

/* pid 0: all. Else those whose handle holds the pid, in whatever word of it. How many were closed. */
int disagg_ipc_close(int pid, int device)
{
    int (*retain)(void **, int) = real("cuDevicePrimaryCtxRetain"), (*push)(void *) = real("cuCtxPushCurrent_v2");
    int (*pop)(void **) = real("cuCtxPopCurrent_v2"), (*release)(int) = real("cuDevicePrimaryCtxRelease_v2");
    int (*range)(Address *, size_t *, Address) = real("cuMemGetAddressRange_v2");
    int (*reserve)(Address *, size_t, size_t, Address, Address) = real("cuMemAddressReserve");
    int (*unreserve)(Address, size_t) = real("cuMemAddressFree");
    int (*close_handle)(Address) = real("cuIpcCloseMemHandle");
    int i, word, count = 0;
    void *context;
    if (retain(&context, device) || push(context))
        return 0;
    pthread_mutex_lock(&lock);
    for (i = 0; i < MAPPINGS_MAX; i++) {
        Address base = mappings[i].address, kept = 0;
        size_t size = 0;
        int is_his = !pid;
        for (word = 0; word < 16 && !is_his; word++)
            is_his = !memcmp(mappings[i].handle.bytes + 4 * word, &pid, 4);
        if (mappings[i].state != OPEN || !is_his)
            continue;
        range(&base, &size, mappings[i].address);
        if (close_handle(mappings[i].address) == 0) {
            mappings[i].state = CLOSED_BY_US;
            count++;
            if (size && reserve(&kept, size, 0, base, 0) == 0 && kept != base)
                unreserve(kept, size);
        }
    }
    pthread_mutex_unlock(&lock);
    pop(&context);
    release(device);
    return count;
}

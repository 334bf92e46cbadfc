/* As much of libcuda as UCX's cache of CUDA IPC mappings asks for. It counts what is mapped. */
static int opened, closed;
static unsigned long long last_closed;

int opened_count(void) { return opened; }
int closed_count(void) { return closed; }
unsigned long long last_closed_address(void) { return last_closed; }

int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetUuid_v2(void *uuid, int device) { (void)uuid; (void)device; return 0; }
int cuDeviceGetUuid(void *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{ (void)device; *flags = 0; *active = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &opened; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
int cuCtxPushCurrent_v2(void *context) { (void)context; return 0; }
int cuCtxPopCurrent_v2(void **context) { (void)context; return 0; }

typedef struct { char bytes[64]; } Handle;
int cuIpcOpenMemHandle_v2(unsigned long long *address, Handle handle, unsigned flags)
{ (void)handle; (void)flags; *address = 0x100000ULL * (unsigned)++opened; return 0; }
int cuIpcCloseMemHandle(unsigned long long address) { ++closed; last_closed = address; return 0; }

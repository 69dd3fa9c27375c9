/* Attacks on a sandbox, from inside.

   probe KEY=VALUE... [NAME...]   try each NAME, or all that need nothing special; a line each: "NAME reached", or why not
   probe handle PATH              print the file handle of PATH, for handle=
   probe list                     print the names
   probe here                     succeed: it has been executed
   probe wait                     wait for a line, as one whom none of its likes can read
   probe arguments ARG...         print how many ARGs there are, how many bytes, and their sum
   probe stay MARK                start a process, ignore signals, and stay
   probe leave MARK               leave one behind, and end with 7
   probe starve MARK              take what can be taken from PID 1, then as leave
   probe die                      die of SIGSEGV
   probe closed DIGITS            succeed if the descriptors 0 to 2 in DIGITS are closed and the others not
   probe different                succeed if the effective uid is not the real one, or if there is a capability

   Each attack runs in a process of its own, with a deadline. What it is to
   reach outside is told by KEYs: what is secret there is told backwards, so that
   to find it on our own command line proves nothing.  */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/capability.h>
#include <mqueue.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <grp.h>
#include <unistd.h>

#define SECONDS 20
#define HIGHEST 64 /* descriptor that is looked at */

static char **words; /* KEY=VALUE */

static const char *value(const char *key)
{
	size_t length = strlen(key);
	for (char **word = words; *word; word++)
		if (!strncmp(*word, key, length) && (*word)[length] == '=')
			return *word + length + 1;
	return "";
}

static int number(const char *key) { return atoi(value(key)); }

/* FORMAT with ..., for a moment. */
static char *text(const char *format, ...)
{
	static char buffer[8][4096];
	static int next;
	va_list arguments;
	va_start(arguments, format);
	next = (next + 1) % 8;
	vsnprintf(buffer[next], sizeof buffer[next], format, arguments);
	va_end(arguments);
	return buffer[next];
}

/* Whether DATA holds the value of KEY, which is told backwards. */
static int holds(const char *data, size_t size, const char *key)
{
	const char *backwards = value(key);
	size_t length = strlen(backwards);
	char word[256];
	for (size_t i = 0; i < length; i++)
		word[i] = backwards[length - 1 - i];
	return length && memmem(data, size, word, length) != 0;
}

/* Whether the file PATH below DIRECTORY can be read and holds the value of KEY. */
static int file_holds(int directory, const char *path, const char *key)
{
	static char data[1 << 18];
	int fd = openat(directory, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return 0;
	ssize_t size = read(fd, data, sizeof data);
	int error = errno;
	close(fd);
	errno = error;
	return size > 0 && holds(data, size, key);
}

static int marked(int directory, const char *path) { return file_holds(directory, path, "word"); }

/* The mark by its path on the host. */
static int at_large(void) { return marked(AT_FDCWD, value("mark")); }

static int readable(const char *path)
{
	char data[256];
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return 0;
	ssize_t size = read(fd, data, sizeof data);
	int error = errno;
	close(fd);
	errno = error;
	return size > 0;
}

static int writable(const char *path)
{
	int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return 0;
	close(fd);
	return 1;
}

static int made(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return 0;
	close(fd);
	unlink(path);
	return 1;
}

static void put(const char *path, const char *data)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0)
		return;
	if (write(fd, data, strlen(data)) < 0)
		errno = errno;
	close(fd);
}

/* Namespaces of our own, where we have every capability. Whether it could be had. */
static int own_namespaces(int flags)
{
	unsigned uid = getuid(), gid = getgid();
	if (unshare(CLONE_NEWUSER | flags))
		return 0;
	put("/proc/self/setgroups", "deny");
	put("/proc/self/uid_map", text("0 %u 1", uid));
	put("/proc/self/gid_map", text("0 %u 1", gid));
	return 1;
}

/* Call ATTACK in namespaces of its own; whether it reached anything. */
static int with_every_capability(int flags, int (*attack)(void))
{
	pid_t pid = fork();
	if (!pid) {
		if (!own_namespaces(flags))
			_exit(errno);
		if (flags & CLONE_NEWPID) {
			int inner = fork(), status;
			if (inner) {
				waitpid(inner, &status, 0);
				_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 200);
			}
		}
		_exit(attack() ? 0 : errno ? errno : 200);
	}
	int status;
	waitpid(pid, &status, 0);
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Whether ATTACK is a success for any other process: in there for all that are seen, outside for the victim alone,
   for nobody else there has agreed to this. */
static int any_process(int (*attack)(int pid))
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	/* By the numbers of that proc, which may be another namespace's. */
	FILE *own = fopen("/proc/self/stat", "r");
	int self = 0, parent = 0;
	if (*value("alone") || !proc || !own || fscanf(own, "%d %*s %*c %d", &self, &parent) != 2)
		return attack(number("victim"));
	while ((entry = readdir(proc))) {
		int pid = atoi(entry->d_name);
		if (pid && pid != self && pid != parent && pid != getpid() && pid != getppid() && attack(pid))
			return 1;
	}
	return attack(number("victim"));
}

/* A: descriptors, current directory, /proc */

static int descriptors(void)
{
	for (int fd = 3; fd < HIGHEST; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			return 1;
	return 0;
}

static int walk_descriptors(void)
{
	for (int fd = 3; fd < HIGHEST; fd++)
		if (marked(fd, "mark") || marked(fd, "../mark"))
			return 1;
	return 0;
}

static int execute_descriptors(void)
{
	for (int fd = 0; fd < HIGHEST; fd++) {
		char *path = text("/proc/self/fd/%d", fd);
		pid_t pid = fork();
		int status;
		if (!pid) {
			execl(path, path, "here", (char *)0);
			_exit(errno);
		}
		waitpid(pid, &status, 0);
		errno = WEXITSTATUS(status);
		if (WIFEXITED(status) && !WEXITSTATUS(status))
			return 1;
	}
	return 0;
}

static int current_directory(void)
{
	char path[4096];
	if (!getcwd(path, sizeof path) || path[0] != '/')
		return 1;
	return marked(AT_FDCWD, "mark") || marked(AT_FDCWD, "../mark");
}

static int links_of(int pid)
{
	if (marked(AT_FDCWD, text("/proc/%d/root%s", pid, value("mark"))) || marked(AT_FDCWD, text("/proc/%d/cwd/mark", pid)))
		return 1;
	for (int fd = 0; fd < HIGHEST; fd++)
		if (marked(AT_FDCWD, text("/proc/%d/fd/%d/mark", pid, fd)))
			return 1;
	return 0;
}

static int links(void) { return any_process(links_of); }

static int program_of(int pid)
{
	char path[4096];
	return readlink(text("/proc/%d/exe", pid), path, sizeof path) > 0 || readlink(text("/proc/%d/cwd", pid), path, sizeof path) > 0;
}

static int program_of_others(void) { return any_process(program_of); }

static int memory_of(int pid)
{
	static const char *const names[] = {"environ", "maps", "mem", "auxv", "io", "syscall", "stack"};
	char path[4096];
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
		if (readable(text("/proc/%d/%s", pid, names[i])))
			return 1;
	for (int fd = 0; fd < HIGHEST; fd++)
		if (readlink(text("/proc/%d/fd/%d", pid, fd), path, sizeof path) > 0)
			return 1;
	DIR *files = opendir(text("/proc/%d/map_files", pid));
	return files && readdir(files) && readdir(files) && readdir(files);
}

static int memory_of_others(void) { return any_process(memory_of); }

static int secret_of(int pid)
{
	return file_holds(AT_FDCWD, text("/proc/%d/environ", pid), "secret") ||
	       file_holds(AT_FDCWD, text("/proc/%d/cmdline", pid), "secret");
}

static int secrets(void) { return any_process(secret_of); }

static int trace(int pid)
{
	char byte;
	struct iovec here = {&byte, 1}, there = {&errno, 1};
	if (!ptrace(PTRACE_SEIZE, pid, 0, 0))
		return 1;
	int error = errno;
	if (process_vm_readv(pid, &here, 1, &there, 1, 0) == 1)
		return 1;
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	for (int fd = 0; pidfd >= 0 && fd < HIGHEST; fd++)
		if (syscall(SYS_pidfd_getfd, pidfd, fd, 0) >= 0)
			return 1;
	errno = error;
	return 0;
}

static int trace_others(void) { return any_process(trace); }

static int setting;
static int is_setting(const char *path, const struct stat *status, int type, struct FTW *ftw)
{
	if (type == FTW_F && writable(path))
		return setting = 1;
	return 0;
}

static int kernel_settings(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[300];
	setting = 0;
	while (proc && !setting && (entry = readdir(proc)))
		if (!strchr(".0123456789", *entry->d_name) && !strstr(entry->d_name, "self")) {
			snprintf(path, sizeof path, "/proc/%s", entry->d_name);
			nftw(path, is_setting, 16, FTW_PHYS);
		}
	return setting;
}

static int core_pattern(void) { return writable("/proc/sys/kernel/core_pattern"); }
static int sysrq(void) { return writable("/proc/sysrq-trigger"); }

static int kernel_secrets(void)
{
	static const char *const names[] = {"kcore", "keys", "key-users", "timer_list", "kmsg", "vmallocinfo", "kallsyms", "iomem"};
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
		if (readable(text("/proc/%s", names[i])))
			return 1;
	return 0;
}

static int uncover(void)
{
	static const char *const names[] = {"sys", "keys", "key-users", "timer_list", "kcore", "kmsg", "sysrq-trigger"};
	if (!*value("alone")) /* in namespaces of our own, or in a sandbox */
		for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
			umount2(text("/proc/%s", names[i]), MNT_DETACH);
	return readable("/proc/keys") || readable("/proc/key-users") || core_pattern() || sysrq();
}

static int second_proc(void)
{
	if (!mount("proc", value("empty"), "proc", 0, 0))
		return readable(text("%s/keys", value("empty"))) || readable(text("%s/key-users", value("empty")));
	int error = errno, there = uncover();
	errno = there ? 0 : error;
	return there;
}

static int covers(void) { return uncover() || with_every_capability(CLONE_NEWNS | CLONE_NEWPID, second_proc); }

static int namespaces_of(int pid)
{
	static const char *const names[] = {"mnt", "net", "ipc", "uts", "user", "cgroup"};
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		int fd = open(text("/proc/%d/ns/%s", pid, names[i]), O_RDONLY);
		if (fd >= 0)
			return 1;
	}
	return 0;
}

static int namespaces(void) { return any_process(namespaces_of); }

/* B: mounts */

static int by_path(void) { return at_large(); }

static int climb(int directory)
{
	fchdir(directory);
	for (int i = 0; i < 100; i++)
		chdir("..");
	chroot(".");
	return at_large();
}

static int leave_root(void)
{
	int here = open("/", O_RDONLY | O_DIRECTORY);
	return chroot(value("empty")) ? 0 : climb(here);
}

static int leave_root_as_root(void) { return leave_root() || with_every_capability(0, leave_root); }

static int leave_by_proc(void)
{
	int here = open(value("empty"), O_RDONLY | O_DIRECTORY);
	return marked(AT_FDCWD, text("/proc/self/fd/%d/../../../../../..%s", here, value("mark"))) ||
	       marked(AT_FDCWD, text("/proc/self/root/../..%s", value("mark"))) ||
	       marked(AT_FDCWD, text("/proc/thread-self/cwd/../..%s", value("mark")));
}

static int take_root_away(void)
{
	mount(0, "/", 0, MS_REC | MS_PRIVATE, 0);
	for (int i = 0; i < 8; i++) {
		umount2("/", MNT_DETACH);
		syscall(SYS_pivot_root, ".", ".");
		if (at_large())
			return 1;
	}
	if (!mount("none", value("empty"), "tmpfs", 0, 0) && !chdir(value("empty")) && !mkdir("old", 0700)) {
		syscall(SYS_pivot_root, ".", "old");
		if (marked(AT_FDCWD, text("old%s", value("mark"))) || marked(AT_FDCWD, text("old/old%s", value("mark"))))
			return 1;
		umount2("old", MNT_DETACH);
		if (marked(AT_FDCWD, text("old%s", value("mark"))))
			return 1;
	}
	return at_large();
}

static int old_root(void) { return with_every_capability(CLONE_NEWNS, take_root_away); }

static int by_handle(void)
{
	struct { struct file_handle head; unsigned char data[128]; } handle;
	const char *hex = value("handle");
	const char *const places[] = {text("%s/", value("root")), value("ro"), value("rw")};
	unsigned size = 0, type;
	int used;
	if (sscanf(hex, "%u:%n", &type, &used) != 1)
		return 0;
	for (hex += used; sscanf(hex, "%2hhx", handle.data + size) == 1; hex += 2)
		size++;
	memcpy(handle.head.f_handle, handle.data, size);
	memmove((char *)&handle + offsetof(struct file_handle, f_handle), handle.data, size);
	handle.head.handle_bytes = size, handle.head.handle_type = type;
	for (unsigned i = 0; i < 3; i++) {
		char data[256];
		int place = open(places[i], O_RDONLY | O_DIRECTORY), fd = open_by_handle_at(place, &handle.head, O_RDONLY);
		if (fd >= 0 && holds(data, read(fd, data, sizeof data), "word"))
			return 1;
	}
	return 0;
}

static int by_handle_as_root(void) { return by_handle() || with_every_capability(CLONE_NEWNS, by_handle); }

static int write_root(void) { return made(text("%s/made", value("root"))); }

static int write_read_only(void)
{
	char *file = text("%s/file", value("ro")), *directory = text("%s/made", value("ro"));
	if (writable(file) || made(directory) || !mkdir(directory, 0700))
		return 1;
	struct timespec times[2] = {{1, 0}, {1, 0}};
	if (!chmod(file, 0666) || !truncate(file, 0) || !utimensat(AT_FDCWD, file, times, 0))
		return 1;
	return !rename(file, directory) || !link(file, directory);
}

struct attributes { unsigned long long set, clear, propagation, userns; };

static int remount_ways(void)
{
	const char *ro = value("ro");
	struct attributes attributes = {.clear = 1 /* RDONLY */};
	mount(0, ro, 0, MS_REMOUNT | MS_BIND, 0);
	mount(0, ro, 0, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV, 0);
	mount(0, ro, 0, MS_REMOUNT, 0);
	syscall(442 /* mount_setattr */, AT_FDCWD, ro, 0x8000 /* AT_RECURSIVE */, &attributes, sizeof attributes);
	syscall(442, AT_FDCWD, ro, 0, &attributes, sizeof attributes);
	if (write_read_only())
		return 1;
	int tree = syscall(428 /* open_tree */, AT_FDCWD, ro, 1 /* OPEN_TREE_CLONE */);
	if (tree >= 0) {
		syscall(442, tree, "", 0x1000 /* AT_EMPTY_PATH */, &attributes, sizeof attributes);
		int fd = openat(tree, "file", O_WRONLY);
		if (fd >= 0)
			return 1;
	}
	int config = syscall(433 /* fspick */, AT_FDCWD, ro, 0);
	if (config >= 0) {
		syscall(431 /* fsconfig */, config, 0, "rw", 0, 0);
		syscall(431, config, 7 /* CMD_RECONFIGURE */, 0, 0, 0);
	}
	if (write_read_only())
		return 1;
	if (!mount(ro, value("empty"), 0, MS_BIND, 0)) {
		mount(0, value("empty"), 0, MS_REMOUNT | MS_BIND, 0);
		if (writable(text("%s/file", value("empty"))))
			return 1;
	}
	umount2(ro, MNT_DETACH);
	return write_read_only();
}

static int remount(void) { return remount_ways() || with_every_capability(CLONE_NEWNS, remount_ways); }

static int device_in_mount(void) { return readable(text("%s/zero", value("ro"))); }
static int device_in_root(void) { return readable(text("%s/zero", value("root"))); }

static int make_device(void)
{
	const char *const places[] = {value("rw"), value("empty")};
	for (int i = 0; i < 2; i++) {
		char *path = text("%s/made-device", places[i]);
		if (mknod(path, S_IFCHR | 0666, makedev(1, 5)))
			continue;
		int open_ = readable(path), error = errno;
		unlink(path);
		errno = error;
		if (open_)
			return 1;
	}
	return 0;
}

static int make_device_on_tmpfs(void)
{
	return !mount("none", value("empty"), "tmpfs", 0, 0) && make_device();
}

static int device(void) { return make_device() || with_every_capability(CLONE_NEWNS, make_device_on_tmpfs); }

static int different(const char *name)
{
	char *path = text("%s/%s", value("ro"), name);
	pid_t pid = fork();
	int status;
	if (!pid) {
		execl(path, path, "different", (char *)0);
		_exit(errno);
	}
	waitpid(pid, &status, 0);
	errno = WEXITSTATUS(status);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

static int setuid_file(void) { return different("setuid"); }
static int file_capabilities(void) { return different("capable"); }

/* J: limits. The cgroups that are to be seen from a namespace of our own are ours, and what holds us is above. */

static int write_limits(const char *directory)
{
	static const char *const names[] = {"memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us"};
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		char data[64] = {};
		int fd = open(text("%s/%s", directory, names[i]), O_RDWR);
		/* Nobody is held by "max", "-1" or a number of bytes that no machine has. */
		ssize_t size = fd < 0 ? 0 : read(fd, data, sizeof data - 1);
		if (size > 0 && strncmp(data, "max", 3) && data[0] != '-' && strtoull(data, 0, 10) < 1ULL << 60 &&
		    write(fd, data, size) == size)
			return 1;
		close(fd);
	}
	return 0;
}

static int cgroups_of_own(void)
{
	static const char *const kinds[] = {0, "memory", "pids", "cpu,cpuacct", "cpu"};
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		if (mount("none", value("empty"), kinds[i] ? "cgroup" : "cgroup2", 0, kinds[i]))
			continue;
		int done = write_limits(value("empty")), error = errno;
		umount2(value("empty"), MNT_DETACH);
		errno = error;
		if (done)
			return 1;
	}
	return 0;
}

static int limits(void) { return with_every_capability(CLONE_NEWNS | CLONE_NEWCGROUP, cgroups_of_own); }

/* F: identity */

static int capabilities_in_effect(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {};
	return !syscall(SYS_capget, &head, data) && (data[0].effective | data[1].effective);
}

static int capabilities(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {};
	if (syscall(SYS_capget, &head, data))
		return 1;
	for (int i = 0; i < 2; i++)
		if (data[i].effective | data[i].permitted | data[i].inheritable)
			return 1;
	for (int cap = 0; cap < 64; cap++)
		if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) > 0 || prctl(47 /* PR_CAP_AMBIENT */, 1 /* IS_SET */, cap, 0, 0) > 0)
			return 1;
	errno = 0;
	return 0;
}

static int other_ids(void)
{
	gid_t group = 0;
	uid_t uid = getuid() ? 0 : 1;
	gid_t gid = getgid() ? 0 : 1;
	return !setgroups(1, &group) || !setresgid(gid, gid, gid) || !setresuid(uid, uid, uid);
}

static int new_privileges(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0; }

static int keyring(void)
{
	return syscall(SYS_keyctl, 10 /* SEARCH */, -3 /* session keyring */, "user", value("key"), 0) > 0;
}

/* H: namespaces */

static int connect_to(int family, void *address, socklen_t size)
{
	int fd = socket(family, SOCK_STREAM, 0), done = fd >= 0 && !connect(fd, address, size), error = errno;
	close(fd);
	errno = error;
	return done;
}

static int abstract_socket(void)
{
	struct sockaddr_un address = {AF_UNIX};
	strcpy(address.sun_path + 1, value("abstract"));
	return connect_to(AF_UNIX, &address, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(value("abstract")));
}

static int socket_file(void)
{
	struct sockaddr_un address = {AF_UNIX};
	strncpy(address.sun_path, value("socket"), sizeof address.sun_path - 1);
	return connect_to(AF_UNIX, &address, sizeof address);
}

static int loopback(void)
{
	struct sockaddr_in address = {AF_INET, htons(number("port")), {htonl(INADDR_LOOPBACK)}};
	return connect_to(AF_INET, &address, sizeof address);
}

static int interfaces(void)
{
	struct if_nameindex *all = if_nameindex();
	for (; all && all->if_index; all++)
		if (strcmp(all->if_name, "lo"))
			return 1;
	return 0;
}


static int system_v(void)
{
	return shmget(number("ipc"), 0, 0) >= 0 || msgget(number("ipc"), 0) >= 0 || semget(number("ipc"), 0, 0) >= 0;
}

static int message_queue(void) { return mq_open(value("queue"), O_RDONLY) >= 0; }
static int shared_memory(void) { return shm_open(value("shm"), O_RDONLY, 0) >= 0; }

static int signal_host(int pid)
{
	return !kill(pid, 0) || syscall(SYS_pidfd_open, pid, 0) >= 0;
}

static int pids(void) { return signal_host(number("victim")); }

static int host_name(void)
{
	char name[65] = {};
	struct stat status;
	gethostname(name, 64);
	if (sethostname(name, strlen(name)))
		return 0;
	errno = 0; /* one's own is no threat */
	return !stat("/proc/self/ns/uts", &status) && status.st_ino == strtoul(value("uts"), 0, 10);
}

static int clocks(void)
{
	struct timex nothing = {.modes = ADJ_SETOFFSET}; /* by nothing */
	if (adjtimex(&nothing) >= 0)
		return 1;
	return 0;
}

static int kernel_modules(void)
{
	/* EPERM comes before what is wrong with the arguments. */
	return syscall(SYS_finit_module, -1, "", 0) && errno != EPERM && errno != ENOSYS;
}

static int kernel_privileges(void)
{
	/* Here, too: another kernel, and swap space. */
	if (syscall(SYS_kexec_load, 0, 0, 0, 0xffff) && errno != EPERM && errno != ENOSYS)
		return 1;
	return syscall(SYS_swapon, 0, 0) && errno != EPERM && errno != ENOSYS;
}

/* D: the caller's terminal, at 0. EPERM is what refuses; anything else is the terminal's own answer. */

static int request(unsigned long request, const void *argument)
{
	return !(syscall(SYS_ioctl, 0, request, argument) && errno == EPERM);
}

static int type(void) { return request(TIOCSTI, "x"); }
static int type_high(void) { return request(0xdead00000000UL | TIOCSTI, "x"); }

static int type_32(void)
{
#ifdef __x86_64__
	char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	long result;
	*low = 'x';
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(54), "b"(0), "c"((long)TIOCSTI), "d"(low) : "memory");
	errno = -result;
	return result != -EPERM;
#else
	return type();
#endif
}

static int take_over(void) { setsid(); return request(TIOCSCTTY, (void *)1) || request(TIOCSCTTY, 0); }
static int discipline(void) { int zero = 0; return request(TIOCSETD, &zero); }
static int paste(void) { char subcode = 3; return request(TIOCLINUX, &subcode); }
static int controlling(void) { return writable("/dev/tty"); }
static int host_pty(void) { return writable(value("pty")); }

/* Not an attack: whether what the others try is there at all. */

static int surroundings(void)
{
	return readable(text("%s/file", value("ro"))) && made(text("%s/made", value("rw"))) && !access(value("empty"), W_OK) &&
	       !access(text("%s/setuid", value("ro")), X_OK) && !access(text("%s/capable", value("ro")), X_OK) &&
	       !access("/proc/self/stat", R_OK) && !access("/dev/null", W_OK);
}

static int groups_of_caller(void)
{
	gid_t found[64];
	int n = getgroups(64, found);
	for (int i = 0; i < n; i++)
		if (found[i] == 4 || found[i] == 24)
			return 1;
	return 0;
}

static const struct attack { const char *name; int (*run)(void); int special; } attacks[] = {
	{"descriptors", descriptors}, {"walk-descriptors", walk_descriptors}, {"execute-descriptors", execute_descriptors},
	{"current-directory", current_directory}, {"links", links}, {"program-of-others", program_of_others},
	{"memory-of-others", memory_of_others}, {"secrets", secrets}, {"trace-others", trace_others},
	{"kernel-settings", kernel_settings}, {"core-pattern", core_pattern}, {"sysrq", sysrq},
	{"kernel-secrets", kernel_secrets}, {"covers", covers}, {"namespaces", namespaces},
	{"by-path", by_path}, {"leave-root", leave_root_as_root}, {"leave-by-proc", leave_by_proc}, {"old-root", old_root},
	{"by-handle", by_handle_as_root}, {"write-root", write_root}, {"write-read-only", write_read_only},
	{"remount", remount}, {"device-in-mount", device_in_mount}, {"device-in-root", device_in_root}, {"device", device},
	{"setuid-file", setuid_file}, {"file-capabilities", file_capabilities},
	{"limits", limits, 1},
	{"capabilities", capabilities}, {"other-ids", other_ids}, {"new-privileges", new_privileges}, {"keyring", keyring},
	{"abstract-socket", abstract_socket}, {"socket-file", socket_file}, {"loopback", loopback}, {"interfaces", interfaces},
	{"system-v", system_v}, {"message-queue", message_queue}, {"shared-memory", shared_memory}, {"pids", pids},
	{"host-name", host_name}, {"clocks", clocks}, {"kernel-modules", kernel_modules}, {"kernel-privileges", kernel_privileges},
	{"surroundings", surroundings, 1}, {"groups-of-caller", groups_of_caller, 1},
	{"type", type, 1}, {"type-high", type_high, 1}, {"type-32", type_32, 1}, {"take-over", take_over, 1},
	{"discipline", discipline, 1}, {"paste", paste, 1}, {"controlling", controlling, 1}, {"host-pty", host_pty, 1},
	{0},
};

static void report(const struct attack *attack)
{
	pid_t pid = fork();
	int status;
	if (!pid) {
		alarm(SECONDS);
		errno = 0;
		_exit(attack->run() ? 0 : errno ? errno : 200);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		printf("%s signal %d\n", attack->name, WTERMSIG(status));
	else if (!WEXITSTATUS(status))
		printf("%s reached\n", attack->name);
	else
		printf("%s %s\n", attack->name, WEXITSTATUS(status) == 200 ? "nothing" : strerror(WEXITSTATUS(status)));
	fflush(stdout);
}

static int print_handle(const char *path)
{
	struct { struct file_handle head; unsigned char data[128]; } handle;
	int mount;
	handle.head.handle_bytes = sizeof handle.data;
	if (name_to_handle_at(AT_FDCWD, path, &handle.head, &mount, 0))
		return 1;
	printf("%u:", handle.head.handle_type);
	for (unsigned i = 0; i < handle.head.handle_bytes; i++)
		printf("%02x", ((unsigned char *)&handle)[offsetof(struct file_handle, f_handle) + i]);
	puts("");
	return 0;
}

static int count(char **arguments)
{
	unsigned long many = 0, bytes = 0, sum = 0;
	for (; *arguments; arguments++, many++)
		for (const unsigned char *byte = (unsigned char *)*arguments; *byte; byte++, bytes++)
			sum = sum * 31 + *byte;
	printf("%lu %lu %lu\n", many, bytes, sum);
	return 0;
}

static int stay(int leave)
{
	for (int signal_ = 1; signal_ < 32; signal_++)
		signal(signal_, SIG_IGN);
	if (!fork()) {
		setsid();
		for (;;)
			pause();
	}
	puts(leave ? "left" : "up");
	fflush(stdout);
	while (!leave)
		pause();
	return 7;
}

static int starve(void)
{
	struct rlimit nothing = {0, 0};
	struct sched_param idle = {0};
	if (getpid() == 1)
		return stay(1);
	for (int limit = 0; limit < RLIM_NLIMITS; limit++)
		if (limit != RLIMIT_CPU) /* whose end would be its own, and ours with it */
			prlimit(1, limit, &nothing, 0);
	sched_setscheduler(1, SCHED_IDLE, &idle);
	kill(1, SIGSTOP);
	kill(-1, SIGKILL);
	return stay(1);
}

/* Who has made us is our tracer, and is told when we stop. */
static int traced(void)
{
	for (int i = 0; i < 3; i++) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0))
			return errno == EPERM || errno == ENOSYS ? 7 : 1; /* a filter refuses it */
		raise(SIGSTOP);
	}
	return 7;
}

static int closed(const char *digits)
{
	for (int fd = 0; fd < 3; fd++)
		if ((fcntl(fd, F_GETFD) < 0) != (strchr(digits, '0' + fd) != 0))
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "handle"))
		return print_handle(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "here"))
		return 0;
	if (argc == 2 && !strcmp(argv[1], "wait"))
		return prctl(PR_SET_DUMPABLE, 0) || getchar() == EOF;
	if (argc == 2 && !strcmp(argv[1], "different"))
		return geteuid() == getuid() && !capabilities_in_effect();
	if (argc == 3 && (!strcmp(argv[1], "stay") || !strcmp(argv[1], "leave")))
		return stay(*argv[1] == 'l');
	if (argc == 3 && !strcmp(argv[1], "starve"))
		return starve();
	if (argc == 2 && !strcmp(argv[1], "traced"))
		return traced();
	if (argc == 2 && !strcmp(argv[1], "die"))
		return *(volatile int *)0; /* not by kill(), which would be lost on PID 1 */
	if (argc == 3 && !strcmp(argv[1], "closed"))
		return closed(argv[2]);
	if (argc > 1 && !strcmp(argv[1], "arguments"))
		return count(argv + 2);
	words = argv + 1;
	int named = 0;
	for (char **word = argv + 1; *word; word++)
		named |= !strchr(*word, '=');
	if (named && !strcmp(argv[1], "list")) {
		for (const struct attack *attack = attacks; attack->name; attack++)
			printf("%s%s\n", attack->name, attack->special ? " special" : "");
		return 0;
	}
	for (const struct attack *attack = attacks; attack->name; attack++) {
		int wanted = !named && !attack->special;
		for (char **word = argv + 1; *word; word++)
			wanted |= !strcmp(*word, attack->name);
		if (wanted)
			report(attack);
	}
	return 0;
}

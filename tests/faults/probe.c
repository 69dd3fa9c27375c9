/* probe STDOUT KEYRING FD STATUS [DIRECTORY...] - print what this process is and can, in one write; exit with STATUS
 *
 * What differs from one run to the next is left out. Of STDOUT, the inode number
 * of the caller's stdout, KEYRING, the serial number of its session keyring, and FD, a
 * descriptor of a program of the host's, it is told how they are related to this process.
 * A negative STATUS: never exit. What is in each DIRECTORY is told, and then what is mounted.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char text[65536];
static int length;

static void say(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	length += vsnprintf(text + length, sizeof text - length, format, args);
	va_end(args);
	if (length >= (int)sizeof text)
		abort();
}

/* PID, if it is 0, 1 or 2, which in a new pid namespace is always the same. */
static int small(pid_t pid) { return pid < 3 ? pid : 3; }

static void ids(void)
{
	uid_t r, e, s;
	gid_t groups[64];
	getresuid(&r, &e, &s);
	say("uids %u %u %u\n", r, e, s);
	getresgid(&r, &e, &s);
	say("gids %u %u %u\n", r, e, s);
	say("groups");
	int n = getgroups(64, groups);
	for (int i = 0; i < n; i++)
		say(" %u", groups[i]);
	say("\npid %d ppid %d session %d group %d\n", small(getpid()), small(getppid()), small(getsid(0)), small(getpgrp()));
}

static void privileges(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { 0 };
	syscall(SYS_capget, &header, data);
	for (int i = 0; i < 2; i++)
		say("caps %x %x %x\n", data[i].effective, data[i].permitted, data[i].inheritable);
	say("bounding");
	for (int cap = 0, there; (there = prctl(PR_CAPBSET_READ, cap)) >= 0; cap++)
		say("%d", there);
	say("\nambient");
	for (int cap = 0, there; (there = prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0)) >= 0; cap++)
		say("%d", there);
	int death = 0;
	prctl(PR_GET_PDEATHSIG, &death);
	say("\nno_new_privs %d\nseccomp %d\nsecurebits %d\ndeath signal %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
	    prctl(PR_GET_SECCOMP), prctl(PR_GET_SECUREBITS), death);
}

static void signals(void)
{
	sigset_t mask;
	sigprocmask(SIG_BLOCK, NULL, &mask);
	say("blocked");
	for (int i = 1; i < 65; i++)
		say("%d", sigismember(&mask, i));
	say("\nhandled");
	for (int i = 1; i < 65; i++) {
		unsigned long action[4] = { 0 };
		syscall(SYS_rt_sigaction, i, NULL, action, 8);
		say("%lu", action[0]);
	}
}

static void descriptors(ino_t stdout_inode, int fd)
{
	struct stat status;
	say("\nopen");
	for (int i = 0; i < 1024; i++)
		if (fcntl(i, F_GETFD) != -1)
			say(" %d", i);
	fstat(1, &status);
	say("\nstdout %s\n", status.st_ino == stdout_inode ? "the caller's" : "another");
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit limit;
		getrlimit(i, &limit);
		say("limit %d %lld %lld\n", i, (long long)limit.rlim_cur, (long long)limit.rlim_max);
	}
	if (fcntl(fd, F_GETFD) == -1)
		return;
	pid_t pid = fork();
	int ended = 0;
	if (!pid) {
		char *argv[] = { "true", 0 };
		syscall(SYS_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
		_exit(errno);
	}
	waitpid(pid, &ended, 0);
	say("a program of the host: %d\n", ended);
}

static void environment(long keyring)
{
	char name[4096] = "?";
	struct utsname uts;
	mode_t mask = umask(0);
	umask(mask);
	say("umask %o\ncwd %s\n", mask, getcwd(name, sizeof name) ? name : strerror(errno));
	for (char **variable = environ; *variable; variable++)
		say("variable %s\n", *variable);
	uname(&uts);
	say("host %s\n", uts.nodename);
	long own = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
	say("keyring %s\n", own == keyring ? "the caller's" : own < 0 ? strerror(errno) : "another");
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	for (int i = 1; i < 64 && fd >= 0; i++) {
		struct ifreq request = { .ifr_ifindex = i };
		if (!ioctl(fd, SIOCGIFNAME, &request) && !ioctl(fd, SIOCGIFFLAGS, &request))
			say("interface %s %x\n", request.ifr_name, request.ifr_flags & IFF_UP);
	}
	close(fd);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void list(const char *path)
{
	char *names[256];
	int n = 0;
	DIR *directory = opendir(path);
	for (struct dirent *entry; directory && n < 256 && (entry = readdir(directory));)
		if (strcmp(entry->d_name, "..") && strcmp(path, "/proc"))
			names[n++] = strdup(entry->d_name);
	qsort(names, n, sizeof *names, by_name);
	for (int i = 0; i < n; i++) {
		char whole[600];
		struct stat status;
		struct statvfs file_system;
		snprintf(whole, sizeof whole, "%s/%s", strcmp(path, "/") ? path : "", names[i]);
		if (lstat(whole, &status) || statvfs(whole, &file_system))
			continue;
		say("%s mode %o of %u %u, mount %lx %s\n", whole, status.st_mode, status.st_uid, status.st_gid,
		    file_system.f_flag, access(whole, W_OK) ? "" : "writable");
	}
	if (directory)
		closedir(directory);
}

static void mounts(void)
{
	FILE *file = fopen("/proc/self/mountinfo", "r");
	char line[4096], *word, *rest;
	while (file && fgets(line, sizeof line, file)) {
		say("mount");
		/* The first four are numbers, and where in its file system it is; that of a peer group is of this run. */
		for (int i = 0; (word = strtok_r(i ? NULL : line, " \n", &rest)); i++)
			if (i > 3)
				say(" %.*s", strchr(word, ':') && strcspn(word, ":") < 12 ? (int)strcspn(word, ":") : 4000, word);
		say("\n");
	}
	if (file)
		fclose(file);
}

static void one_file(const char *directory, const char *name)
{
	char path[4600], value[200];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	int fd = open(path, O_RDONLY);
	ssize_t got = fd < 0 ? -1 : read(fd, value, sizeof value - 1);
	if (got > 0)
		say("%s %.*s", name, (int)got, value);
	close(fd);
}

/* The limits of the cgroups of hako's that this process is in. */
static void cgroups(void)
{
	const char *files[] = { "memory.limit_in_bytes", "pids.max", "memory.max", "memory.memsw.limit_in_bytes" };
	FILE *file = fopen("/proc/self/cgroup", "r");
	char line[4096];
	while (file && fgets(line, sizeof line, file)) {
		char *name = strchr(line, ':'), *path = name ? strchr(name + 1, ':') : 0, directory[8300];
		if (!path)
			continue;
		*path++ = 0, path[strcspn(path, "\n")] = 0;
		const char *ours = strstr(path, "/hako-");
		snprintf(directory, sizeof directory, "/sys/fs/cgroup/%s%s", name + 1, path);
		for (int i = 0; ours && i < 4; i++)
			one_file(directory, files[i]);
	}
	if (file)
		fclose(file);
}

int main(int argc, char **argv)
{
	ids();
	privileges();
	signals();
	descriptors(atol(argv[1]), atoi(argv[3]));
	environment(atol(argv[2]));
	for (int i = 5; i < argc; i++)
		list(argv[i]);
	if (argc > 5)
		mounts();
	cgroups();
	say("end\n");
	if (write(1, text, length) != length)
		return 99;
	while (atoi(argv[4]) < 0)
		pause();
	return atoi(argv[4]);
}

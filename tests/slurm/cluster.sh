#!/usr/bin/env bash
# A Slurm cluster of two nodes with accounting on this one machine: Debian's packages, root, no systemd.
#
#     cluster.sh up | down | status | wipe | env
#
# Everything lies under SLURMLAB_ROOT. Outside it: the packages, the names n1 and n2 in /etc/hosts and the link
# /etc/slurm/slurm.conf (so that sinfo needs no SLURM_CONF). `down` stops the daemons and takes the link away; `wipe`
# deletes the folder as well.
set -euo pipefail

ROOT=${SLURMLAB_ROOT:-${TMPDIR:-/tmp}/mtlrec-slurm}
CPUS=${SLURMLAB_CPUS:-2}                  # of each node, whatever the machine has
MEMORY_MB=${SLURMLAB_MEMORY_MB:-8000}     # of each node; cpu_small asks for 7168
KILL_WAIT=${SLURMLAB_KILL_WAIT:-30}       # seconds between SIGTERM and SIGKILL; 30 is Slurm's default
# cgroup, as clusters have it, where the freezer of cgroup v1 is mounted; else linuxproc, which sends every signal to the
# ranks as well as to torchrun; pgid loses sight of the ranks, which torchrun starts in sessions of their own
freezer=/sys/fs/cgroup/freezer/release_agent
PROCTRACK=${SLURMLAB_PROCTRACK:-$([ -e $freezer ] && echo cgroup || echo linuxproc)}
SCHEDULER=${SLURMLAB_SCHEDULER:-bf_interval=1,sched_interval=2}
# How long a requeued job waits, hard-wired to the life of a job's credential: 120 is Slurm's default. It must be longer
# than a job takes to start.
CRED_EXPIRE=${SLURMLAB_CRED_EXPIRE:-10}
DB_PORT=${SLURMLAB_DB_PORT:-13306}
PACKAGES=(slurm-wlm slurm-client munge slurmdbd mariadb-server)

ETC=$ROOT/etc RUN=$ROOT/run LOG=$ROOT/log SPOOL=$ROOT/spool DATA=$ROOT/mariadb
export SLURM_CONF=$ETC/slurm.conf
LINK=/etc/slurm/slurm.conf

die() { echo "cluster.sh: $*" >&2; exit 1; }

# wait_for SECONDS WHAT LOGFILE COMMAND...: until COMMAND succeeds.
wait_for() {
    local end=$((SECONDS + $1)) what=$2 log=$3
    shift 3
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= end)); then
            [ -f "$log" ] && tail -n 5 "$log" >&2
            die "$what did not come up; see $log"
        fi
        sleep 0.2
    done
}

pid_in() { # the pid in a file, if that process lives and is the program NAME
    local pid
    pid=$(tr -dc 0-9 2>/dev/null <"$1") || return 1
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && echo "$pid"
}

install_packages() {
    local missing=() package
    for package in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | tr -d ' ')" = ii ] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    echo "installing ${missing[*]}"
    # The packages would start daemons of their own, on Debian's folders.
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        ours=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    local log=${ROOT}-apt.log status=0
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >$log 2>&1 || status=$?
    [ -z "$ours" ] || rm -f $policy
    ((status == 0)) || { tail -n 5 $log >&2; die "apt-get failed; see $log"; }
}

write_configs() {
    local host node
    host=$(hostname -s)
    mkdir -p "$ETC" "$RUN" "$LOG" "$SPOOL/ctld" "$SPOOL/n1" "$SPOOL/n2"
    chmod 755 "$ROOT" "$ETC" "$RUN" "$LOG" "$SPOOL"
    for node in n1 n2; do
        grep -Eq "^[^#]*[[:space:]]$node([[:space:]]|\$)" /etc/hosts || echo "127.0.0.1 $node" >>/etc/hosts
    done
    cat >"$ETC/slurm.conf.new" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=cred_expire=$CRED_EXPIRE,socket=$RUN/munge.socket
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/$PROCTRACK
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=$SCHEDULER
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=$KILL_WAIT
StateSaveLocation=$SPOOL/ctld
SlurmdSpoolDir=$SPOOL/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd.%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd.%n.log
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$RUN/munge.socket
JobAcctGatherType=jobacct_gather/linux
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=$CPUS RealMemory=$MEMORY_MB State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=$CPUS RealMemory=$MEMORY_MB State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=01:00:00 State=UP
CONF
    if [ -f "$SLURM_CONF" ] && ! cmp -s "$SLURM_CONF.new" "$SLURM_CONF"; then
        stop_slurm # plugins and AuthInfo are read at the start only
    fi
    mv "$SLURM_CONF.new" "$SLURM_CONF"
    cat >"$ETC/cgroup.conf" <<CONF
CgroupAutomount=no
CgroupMountpoint=/sys/fs/cgroup
CgroupPlugin=cgroup/v1
CONF
    (
        umask 077
        [ -s "$ETC/db.password" ] || head -c 18 /dev/urandom | base64 | tr -dc 'A-Za-z0-9' >"$ETC/db.password"
        cat >"$ETC/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket
SlurmUser=root
PidFile=$RUN/slurmdbd.pid
LogFile=$LOG/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DB_PORT
StorageUser=slurm
StoragePass=$(cat "$ETC/db.password")
StorageLoc=slurm_acct_db
CONF
        chmod 600 "$ETC/slurmdbd.conf" # also one that was there: slurmdbd refuses anything wider
    )
    mkdir -p "$(dirname $LINK)"
    if [ -e $LINK ] && [ ! -L $LINK ]; then
        die "$LINK is a file of somebody else's: move it away"
    fi
    ln -sfn "$ETC/slurm.conf" $LINK
}

start_munge() {
    # munged refuses folders that others may write to, and a key that is not its own.
    mkdir -p "$ROOT/munge"
    if [ ! -s "$ROOT/munge/munge.key" ]; then
        head -c 1024 /dev/urandom >"$ROOT/munge/munge.key"
    fi
    chown -R munge:munge "$ROOT/munge"
    chmod 700 "$ROOT/munge"
    chmod 400 "$ROOT/munge/munge.key"
    chown munge:munge "$RUN" # its socket and its lock
    if ! pid_in "$ROOT/munge/munged.pid" munged >/dev/null; then
        # --force: the folders above may be sticky and world-writable (/tmp), which munged would refuse
        setpriv --reuid munge --regid munge --clear-groups munged --force \
            --key-file="$ROOT/munge/munge.key" --socket="$RUN/munge.socket" --pid-file="$ROOT/munge/munged.pid" \
            --log-file="$ROOT/munge/munged.log" --seed-file="$ROOT/munge/munged.seed" \
            >"$LOG/munged.start.log" 2>&1 || { cat "$LOG/munged.start.log" >&2; die "munged did not start"; }
    fi
    wait_for 10 munged "$ROOT/munge/munged.log" bash -c "munge -S '$RUN/munge.socket' -n | unmunge -S '$RUN/munge.socket'"
}

sql() { mariadb --no-defaults --socket="$RUN/mariadb/mariadb.sock" --user=root "$@"; }

start_mariadb() {
    mkdir -p "$RUN/mariadb"
    chown mysql:mysql "$RUN/mariadb"
    if [ ! -d "$DATA/mysql" ]; then
        mkdir -p "$DATA"
        chown mysql:mysql "$DATA"
        mariadb-install-db --no-defaults --user=mysql --datadir="$DATA" --skip-test-db \
            --auth-root-authentication-method=socket --auth-root-socket-user=root >"$LOG/mariadb-install.log" 2>&1 ||
            { rm -rf "$DATA"; die "mariadb-install-db failed; see $LOG/mariadb-install.log"; }
    fi
    if ! pid_in "$RUN/mariadb/mariadb.pid" mariadbd >/dev/null; then
        touch "$LOG/mariadbd.log"
        setsid mariadbd --no-defaults --user=mysql --datadir="$DATA" --socket="$RUN/mariadb/mariadb.sock" \
            --pid-file="$RUN/mariadb/mariadb.pid" --bind-address=127.0.0.1 --port="$DB_PORT" --skip-name-resolve \
            --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >>"$LOG/mariadbd.log" 2>&1 </dev/null &
    fi
    wait_for 30 mariadbd "$LOG/mariadbd.log" sql -e 'select 1'
    sql -e "create database if not exists slurm_acct_db;
            create or replace user slurm@'127.0.0.1' identified by '$(cat "$ETC/db.password")';
            grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
}

cluster_known() { [ -n "$(sacctmgr -nP show cluster lab format=cluster)" ]; }
dbd_listens() { (exec 3<>/dev/tcp/127.0.0.1/16819); }
nodes_idle() { [ "$(sinfo -h -N -t idle,alloc,mix -o %N | sort -u | tr '\n' ' ')" = "n1 n2 " ]; }
registered() { [ "$(sacctmgr -nP show cluster lab format=controlport)" = 16817 ]; }

start_slurm() {
    local node
    pid_in "$RUN/slurmdbd.pid" slurmdbd >/dev/null || (cd "$LOG" && slurmdbd) || die "slurmdbd did not start; see $LOG/slurmdbd.log"
    # The socket opens once the tables are made, which takes seconds the first time.
    wait_for 60 slurmdbd "$LOG/slurmdbd.log" dbd_listens
    cluster_known || sacctmgr -i add cluster lab >"$LOG/sacctmgr.log" 2>&1 || true
    cluster_known || die "sacctmgr could not add the cluster; see $LOG/sacctmgr.log"

    pid_in "$RUN/slurmctld.pid" slurmctld >/dev/null ||
        (cd "$LOG" && slurmctld) || die "slurmctld did not start; see $LOG/slurmctld.log"
    wait_for 30 slurmctld "$LOG/slurmctld.log" bash -c 'scontrol ping | grep -q UP'
    for node in n1 n2; do
        pid_in "$RUN/slurmd.$node.pid" slurmd >/dev/null ||
            (cd "$LOG" && slurmd -N $node) || die "slurmd $node did not start; see $LOG/slurmd.$node.log"
    done
    for node in n1 n2; do # left down or drained by a job that did not die
        scontrol update nodename=$node state=resume >/dev/null 2>&1 || true
    done
    wait_for 30 "one of the nodes" "$LOG/slurmctld.log" nodes_idle
    wait_for 30 "accounting (the controller at slurmdbd)" "$LOG/slurmctld.log" registered
    # A job goes all the way, and sacct knows of it.
    local out
    out=$(timeout 60 srun -N2 -n2 --mem=10 -J up bash -c 'echo $SLURMD_NODENAME' 2>&1 | sort | tr '\n' ' ') || true
    [ "$out" = "n1 n2 " ] || die "srun on both nodes said: $out"
    wait_for 30 "accounting (a job in sacct)" "$LOG/slurmdbd.log" bash -c 'sacct -nXP --name=up --format=state | grep -q COMPLETED'
}

up() {
    [ "$(id -u)" = 0 ] || die "needs root"
    install_packages
    write_configs
    start_munge
    start_mariadb
    start_slurm
    sinfo
    echo "up in ${SECONDS} s; export SLURM_CONF=$SLURM_CONF is optional"
}

stop() { # stop NAME PIDFILE SECONDS
    local pid end=$((SECONDS + $3))
    pid=$(pid_in "$2" "$1") || return 0
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= end)); then
            echo "cluster.sh: $1 ($pid) does not end, killed" >&2
            kill -9 "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.1
    done
}

stop_slurm() {
    local end=$((SECONDS + KILL_WAIT + 10))
    if pid_in "$RUN/slurmctld.pid" slurmctld >/dev/null; then
        scancel -u root --quiet 2>/dev/null || true
        while [ -n "$(squeue -h 2>/dev/null)" ] && ((SECONDS < end)); do sleep 0.5; done
    fi
    stop slurmd "$RUN/slurmd.n1.pid" 10
    stop slurmd "$RUN/slurmd.n2.pid" 10
    stop slurmctld "$RUN/slurmctld.pid" 20
}

down() {
    [ ! -f "$SLURM_CONF" ] || stop_slurm
    stop slurmdbd "$RUN/slurmdbd.pid" 20
    stop mariadbd "$RUN/mariadb/mariadb.pid" 30
    stop munged "$ROOT/munge/munged.pid" 10
    if [ -L $LINK ] && [ "$(readlink $LINK)" = "$SLURM_CONF" ]; then rm -f $LINK; fi
    echo "down"
}

case ${1:-} in
up) up ;;
down) down ;;
wipe) down && rm -rf "$ROOT" ;;
status) sinfo -N -o '%N %T %c %m' && scontrol ping && squeue ;;
env) echo "export SLURM_CONF=$SLURM_CONF" ;;
*) die "say up, down, status, wipe or env" ;;
esac

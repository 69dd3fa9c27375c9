# Completion of hako's commands for fish. Made by tools/make_completions.py.

# The place of the current word: "options", or the name of an operand. With "from" instead: where PROG begins.
function __hako_place
    set -l tokens (commandline -opc)
    set -l command (__hako_name $tokens[1])
    set -l seen
    set -l count 0
    set -l i 2
    set -l options yes
    while test $i -le (count $tokens)
        set -l word $tokens[$i]
        set -l valued
        set -l operands
        __hako_table
        if test "$word" = --
            set options
        else if test -n "$options"; and string match -q -- '-?*' $word
            set -a seen (string replace -r '=.*' '' -- $word)
            string match -q -- '--*' $word; or set word -(string sub -s -1 -- $word)
            contains -- $word $valued; and set i (math $i + 1)
        else
            set options
            set count (math $count + 1)
            if test "$operands[$count]" = PROG
                echo PROG $i
                return
            end
        end
        set i (math $i + 1)
    end
    set -l valued
    set -l operands
    __hako_table
    if test -n "$options"; and begin
            test $i -gt (math (count $tokens) + 1); or string match -q -- '-*' (commandline -ct)
        end
        echo options
    else
        echo $operands[(math $count + 1)] $i
    end
end

function __hako_name
    string replace -r '.*/' '' -- $argv[1]
end

function __hako_table --no-scope-shadowing
    switch $command
@TABLES@
    end
end

function __hako_is
    set -l place (string split ' ' -- (__hako_place))
    test "$place[1]" = $argv[1]
end

# PROG, or what completes it once it is there.
function __hako_prog
    set -l place (string split ' ' -- (__hako_place))
    set -l tokens (commandline -opc) (commandline -ct)
    set -l start $place[2]
    complete --do-complete=(string join ' ' -- (string escape -- $tokens[$start..-2]) $tokens[-1])
end

function __hako_path
    __fish_complete_path (commandline -ct | string replace -r '^--[^=]*=' '')
end

function __hako_directory
    __fish_complete_directories (commandline -ct | string replace -r '^--[^=]*=' '') ''
end

function __hako_user
    __fish_complete_users
end

function __hako_group
    __fish_complete_groups
end

function __hako_variable
    set -nx
end

function __hako_policy
    for file in /etc/hako/policies/*.toml ~/.config/hako/policies/*.toml
        string replace -r '.*/(.*)\.toml$' '$1' -- $file
    end
end

function __hako_pid
    for file in /proc/*/comm
        string match -q hako-init (cat $file 2>/dev/null); and string split -f 3 / -- $file
    end
end

@COMPLETIONS@

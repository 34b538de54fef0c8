//! The PowerShell script beside an image: it makes a Gen2 machine that boots it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Writes the script beside `image`, under the same name with the extension `ps1`, and returns its path.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write_beside(image: &Path) -> Result<PathBuf> {
    let path = image.with_extension("ps1");
    std::fs::write(&path, text(image)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Returns the text of the script for `image`, which is expected in the script's own folder.
///
/// It has CR LF line ends and only ASCII, which every PowerShell reads.
#[must_use]
pub fn text(image: &Path) -> String {
    let file = image
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let stem = image
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    TEMPLATE
        .replace("@FILE@", &quoted(&file))
        .replace("@NAME@", &quoted(&stem))
        .replace('\n', "\r\n")
}

/// Returns the text in PowerShell's single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

const TEMPLATE: &str = r#"#Requires -RunAsAdministrator
#Requires -Modules Hyper-V
<#
.SYNOPSIS
    Makes a Hyper-V Gen2 machine that boots the image beside this script, and starts it.
.DESCRIPTION
    The machine has the image as its only boot disk, Secure Boot off (the loader is not signed), COM 1 on a named pipe,
    and dynamic memory. Its console is its window (the framebuffer); the same text comes out of COM 1.
.EXAMPLE
    .\this-script.ps1 -Memory 512MB -Processors 2 -DataDisk D:\data.vhdx
#>
[CmdletBinding(SupportsShouldProcess)]
param(
    # The machine's name.
    [string] $Name = @NAME@,
    # The memory that the machine starts with.
    [long] $Memory = 512MB,
    # The bounds of dynamic memory.
    [long] $MinimumMemory = 64MB,
    [long] $MaximumMemory = 1GB,
    # The number of virtual processors.
    [int] $Processors = 1,
    # The virtual switch to connect to; none by default.
    [string] $Switch = '',
    # A further disk; made, dynamic, of 1 GB, if there is no such file.
    [string] $DataDisk = '',
    # Replace a machine of the same name.
    [switch] $Force,
    # Make the machine, but do not start it.
    [switch] $NoStart
)
$ErrorActionPreference = 'Stop'
$image = Join-Path $PSScriptRoot @FILE@
if (-not (Test-Path -LiteralPath $image)) {
    throw "The image $image is not there: keep this script beside it."
}
if ([IO.Path]::GetExtension($image) -notin '.vhd', '.vhdx') {
    throw "Hyper-V boots VHDX and VHD. Make one with: cargo run -- image --format vhdx -o $Name.vhdx"
}
if ([IO.Path]::GetExtension($image) -eq '.vhd') {
    # A Gen2 machine boots from VHDX only; a fixed VHD is what Azure takes.
    $converted = [IO.Path]::ChangeExtension($image, '.vhdx')
    if (-not (Test-Path -LiteralPath $converted)) { Convert-VHD -Path $image -DestinationPath $converted }
    $image = $converted
}
$old = Get-VM -Name $Name -ErrorAction SilentlyContinue
if ($old) {
    if (-not $Force) { throw "There is a machine $Name already: give another -Name, or -Force to replace it." }
    if ($old.State -ne 'Off') { Stop-VM -VM $old -TurnOff -Force }
    Remove-VM -VM $old -Force
}
if (-not $PSCmdlet.ShouldProcess($Name, 'Make a Gen2 machine')) { return }
$made = @{ Name = $Name; Generation = 2; MemoryStartupBytes = $Memory; VHDPath = $image }
if ($Switch) { $made.SwitchName = $Switch }
$vm = New-VM @made
Set-VM -VM $vm -AutomaticCheckpointsEnabled $false -CheckpointType Disabled
Set-VMProcessor -VM $vm -Count $Processors
Set-VMMemory -VM $vm -DynamicMemoryEnabled $true -StartupBytes $Memory `
    -MinimumBytes ([Math]::Min($MinimumMemory, $Memory)) -MaximumBytes ([Math]::Max($MaximumMemory, $Memory))
Set-VMFirmware -VM $vm -EnableSecureBoot Off -FirstBootDevice (Get-VMHardDiskDrive -VM $vm | Select-Object -First 1)
Set-VMComPort -VM $vm -Number 1 -Path "\\.\pipe\$Name"
if ($DataDisk) {
    if (-not (Test-Path -LiteralPath $DataDisk)) { New-VHD -Path $DataDisk -Dynamic -SizeBytes 1GB | Out-Null }
    Add-VMHardDiskDrive -VM $vm -Path $DataDisk
}
Write-Host "Made $Name. Its window:  vmconnect.exe localhost $Name"
Write-Host "Its COM 1:             \\.\pipe\$Name  (PuTTY: connection type Serial, this path as the line)"
if (-not $NoStart) { Start-VM -VM $vm; Write-Host "Started $Name." }
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_makes_the_machine_that_the_image_needs() {
        let script = text(Path::new("out/it's.vhdx"));
        for needed in [
            "Join-Path $PSScriptRoot 'it''s.vhdx'",
            "$Name = 'it''s'",
            "Generation = 2",
            "-EnableSecureBoot Off",
            "Set-VMComPort -VM $vm -Number 1 -Path \"\\\\.\\pipe\\$Name\"",
            "Add-VMHardDiskDrive",
            "-DynamicMemoryEnabled $true",
        ] {
            assert!(script.contains(needed), "{needed}");
        }
        assert!(script.is_ascii());
        assert!(!script.replace("\r\n", "").contains('\n'), "CR LF throughout");
        assert!(!script.contains('@') || !script.contains("@FILE@"));
    }

    #[test]
    fn the_script_stands_beside_its_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_beside(&folder.path().join("demo.vhdx")).unwrap();
        assert_eq!(path, folder.path().join("demo.ps1"));
        assert!(std::fs::read_to_string(path).unwrap().contains("'demo.vhdx'"));
    }
}
